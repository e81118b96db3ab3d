-- Stores a large part of a job that is still to be submitted. Nothing makes room for it: uploads have room of their own, and an
-- upload that nobody completes takes nothing from others. Returns {'stored'} or {'full', what, bound}.
local given = arguments({ID, named('name', NAME), {'part', any}, named('tenant', NAME), named('max_uploads', SIZE),
  named('max_tenant_uploads', SIZE)})
local id, name, part, tenant = given.job_id, given.name, given.part, given.tenant
if call('HEXISTS', parts_key(id), name) == 1 or call('EXISTS', job_key(id)) == 1 then return {'stored'} end
local function full(what, bound) return {'full', what, string.format('%.0f', bound)} end
if stored_by('uploads:' .. tenant) + #part > given.max_tenant_uploads then
  return full('tenant_uploads', given.max_tenant_uploads)
end
if stored_by('uploads') + #part > given.max_uploads then return full('uploads', given.max_uploads) end
call('HSET', parts_key(id), name, part, ':tenant', tenant)
call('HINCRBY', parts_key(id), ':bytes', #part)
count_uploads(tenant, #part)
call('ZADD', root .. 'attaching', exact(now), id)
return {'stored'}
