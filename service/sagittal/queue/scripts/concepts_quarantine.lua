-- Sets a set of this revision aside which cannot be read; its files are kept as long. Returns 1, or 0 for another revision.
local given = arguments({TENANT, MODEL, SET_NAME, {'revision', any}})
local tenant, member = given.tenant, member_of(given)
local set = read_set(tenant, member)
if not set or set.revision ~= given.revision then return 0 end
for _, name in ipairs({'weights', 'examples'}) do
  if set[name] ~= '' then call('ZADD', root .. 'concept_files', exact(now + KEPT_SECONDS), set[name]) end
end
set_aside(set_key(tenant, member), 'is no concept set, or that of another name')
drop_set(tenant, member, set)
return 1
