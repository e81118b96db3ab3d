-- Returns {'1' if there are more else '', view...}: up to `limit` batches of a tenant after a name, by name.
local given = arguments({BATCH_TENANT, {'after', any}, named('limit', COUNT)})
local index, limit = root .. 'batches:' .. given.tenant, math.min(given.limit, 1000)
local names = call('ZRANGEBYLEX', index, given.after == '' and '-' or '(' .. given.after, '+', 'LIMIT', 0, limit + 1)
local answer = {#names > limit and '1' or ''}
for i = 1, math.min(#names, limit) do
  local found = view_batch(given.tenant, names[i])
  if found then answer[#answer + 1] = found else call('ZREM', index, names[i]) end
end
return answer
