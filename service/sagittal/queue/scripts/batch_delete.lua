-- Deletes a batch. Returns 'ok', 'unknown', or 'live' if items are in flight. The nonce makes a repeated call succeed.
local given = arguments({BATCH_TENANT, BATCH_NAME, named('nonce', NAME)})
local tenant, name, mark = given.tenant, given.name, root .. 'deleted:' .. given.nonce
if call('EXISTS', mark) == 1 then return 'ok' end
if not read_batch(tenant, name) then return 'unknown' end
if call('SCARD', batch_key('batchlive', tenant, name)) > 0 then return 'live' end
drop_batch(tenant, name)
call('SET', mark, 1, 'EX', 60)
return 'ok'
