-- Changes the state of a batch. A cancelled one stays cancelled. Returns its view, or false.
local given = arguments({BATCH_TENANT, BATCH_NAME, {'state', one_of('open', 'paused', 'cancelled')}})
local batch = read_batch(given.tenant, given.name)
if not batch then return false end
if batch.state ~= given.state and batch.state ~= 'cancelled' then
  call('HSET', batch_key('batch', given.tenant, given.name), 'state', given.state)
  touch_batch(given.tenant, given.name)
end
return view_batch(given.tenant, given.name)
