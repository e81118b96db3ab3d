-- Records an item that has no job as failed, with an event, unless the item is known. Returns {'item', letter, job,
-- last event}, or {'batch', 'unknown' | 'cancelled' | 'full'}.
local given = arguments({BATCH_TENANT, BATCH_NAME, named('key', NAME), named('event', NAME), named('max_items', COUNT)})
local tenant, name, key = given.tenant, given.name, given.key
local batch = read_batch(tenant, name)
if not batch then return {'batch', 'unknown'} end
if not read_item(tenant, name, key) then
  if batch.state == 'cancelled' then return {'batch', 'cancelled'} end
  if counted('items', tenant) >= given.max_items then return {'batch', 'full'} end
  write_item(tenant, name, key, LETTERS.failed, '')
  keep_failure(tenant, name, key, given.event)
end
local letter, id = read_item(tenant, name, key)
return {'item', letter, id, call('HGET', batch_key('batchfailures', tenant, name), key) or ''}
