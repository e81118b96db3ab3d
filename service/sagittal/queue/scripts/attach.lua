-- Stores a large part of a job before the job is submitted. Uploads have a limit of their own, and nothing is deleted
-- to make room for them, so an unfinished upload takes nothing from other jobs. Returns {'stored'} or {'full', limit
-- name, limit}.
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
