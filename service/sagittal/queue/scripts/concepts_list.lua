-- Returns {'1' where there are more, MODEL/NAME, document, revision, ...}: the sets of a tenant after a MODEL/NAME, of one model
-- or of all for an empty one, at most so many, and fewer where they have more than 8 MiB together.
local given = arguments({TENANT, {'model', any}, {'after', any}, named('limit', COUNT)})
local tenant, limit, room = given.tenant, math.min(given.limit, 1000), 8 * 2^20
local found, answer = members(tenant, given.model, given.after, limit + 1), {''}
for i, member in ipairs(found) do
  if i > limit or room <= 0 then
    answer[1] = '1'
    break
  end
  local set = pick(set_key(tenant, member), {'document', 'revision'})
  if set.revision == '' then
    call('ZREM', index_key(tenant), member) -- its key was lost
  else
    room = room - #set.document
    for _, value in ipairs({member, set.document, set.revision}) do answer[#answer + 1] = value end
  end
end
return answer
