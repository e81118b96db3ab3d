-- Forgets failed and cancelled items: the given ones or, without any, about `limit` others. Returns {cursor, number of
-- forgotten items}, or false if the batch does not exist; the cursor is '0' at the end.
local given = arguments({BATCH_TENANT, BATCH_NAME, named('cursor', SIZE), named('limit', COUNT)}, {named('key', NAME)})
local tenant, name, cursor, keys = given.tenant, given.name, '0', given.rest
if not read_batch(tenant, name) then return false end
if #keys == 0 then
  local page = call('HSCAN', batch_key('batchitems', tenant, name), string.format('%.0f', given.cursor), 'COUNT',
    math.min(given.limit, 1000))
  cursor = page[1]
  for i = 1, #page[2], 2 do keys[#keys + 1] = page[2][i] end
end
local forgotten = 0
for _, key in ipairs(keys) do
  local letter = read_item(tenant, name, key)
  if letter == 'f' or letter == 'x' then
    forget_item(tenant, name, key)
    forgotten = forgotten + 1
  end
end
if forgotten > 0 then touch_batch(tenant, name) end
return {cursor, forgotten}
