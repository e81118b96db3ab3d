-- Deletes a set; the next sweep deletes its files. The nonce makes a repeated call of the same deletion succeed.
-- Returns 'deleted' or 'unknown'.
local given = arguments({TENANT, MODEL, SET_NAME, named('nonce', NAME)})
local tenant, member, mark = given.tenant, member_of(given), root .. 'deleted:' .. given.nonce
local set = read_set(tenant, member)
if call('EXISTS', mark) == 1 then return 'deleted' end
if not set then return 'unknown' end
delete_later(set)
drop_set(tenant, member, set)
call('SET', mark, 1, 'EX', 60)
return 'deleted'
