-- Replaces the document of a set of this revision. Returns {'saved'}, {'changed'} if the set has another revision,
-- {'unknown'}, or {'full', bytes}.
local given = arguments({TENANT, MODEL, SET_NAME, REVISION, named('document', NAME), MOST_BYTES})
local tenant, member = given.tenant, member_of(given)
local set = read_set(tenant, member)
if not set then return {'unknown'} end
local key = set_key(tenant, member)
local before = call('HGET', key, 'document') or ''
if before == given.document then return {'saved'} end -- sent again
if set.revision ~= given.revision then return {'changed'} end
local more = #given.document - #before
local refused = too_much(tenant, more, given.max_tenant_bytes)
if refused then return refused end
call('HSET', key, 'document', given.document, 'revision', call('INCR', root .. 'concept_revision'))
call('HINCRBY', key, 'bytes', more)
count('concept_bytes', tenant, more)
return {'saved'}
