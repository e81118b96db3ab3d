-- Returns {'1' if there are more else '', MODEL/NAME, document, revision, ...}: sets of a tenant after a MODEL/NAME, of
-- one model or, if it is empty, of all; at most `limit`, and fewer if they exceed 8 MiB together.
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
    call('ZREM', index_key(tenant), member) -- the set's key is missing
  else
    room = room - #set.document
    for _, value in ipairs({member, set.document, set.revision}) do answer[#answer + 1] = value end
  end
end
return answer
