-- Moves a damaged set of this revision aside, and keeps its files as long. Returns 1, or 0 if it has another revision.
local given = arguments({TENANT, MODEL, SET_NAME, {'revision', any}})
local tenant, member = given.tenant, member_of(given)
local set = read_set(tenant, member)
if not set or set.revision ~= given.revision then return 0 end
for _, name in ipairs({'weights', 'examples'}) do
  if set[name] ~= '' then call('ZADD', root .. 'concept_files', exact(now + KEPT_SECONDS), set[name]) end
end
set_aside(set_key(tenant, member), 'is not a concept set, or has another name')
drop_set(tenant, member, set)
return 1
