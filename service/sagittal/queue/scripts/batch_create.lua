-- Creates a batch, or finds the one with this name and specification. Returns {'created' | 'same', view...}, {'other'} if
-- its specification differs, or {'full'} if the tenant has too many.
local given = arguments({BATCH_TENANT, BATCH_NAME, named('spec', NAME), named('expected_items', SIZE), named('max_batches', COUNT)})
local tenant, name = given.tenant, given.name
local key = batch_key('batch', tenant, name)
local batch = read_batch(tenant, name)
if batch and batch.spec ~= given.spec then return {'other'} end
local verdict = batch and 'same' or 'created'
if not batch then
  if call('ZCARD', root .. 'batches:' .. tenant) >= given.max_batches then return {'full'} end
  drop_batch(tenant, name) -- what a damaged one left
  call('HSET', key, 'spec', given.spec, 'state', 'open', 'created', exact(now), 'expected', '0')
end
if given.expected_items > 0 then call('HSET', key, 'expected', string.format('%.0f', given.expected_items)) end
call('ZADD', root .. 'batches:' .. tenant, 0, name)
touch_batch(tenant, name)
return {verdict, view_batch(tenant, name)}
