-- Stores a set whose files are written: how ('fit' by a worker with the lease of the job, or 'import' of a set from an
-- older release), job, token, tenant, model, name, '1' to replace a set of that name, document, weights file, examples
-- file, their bytes, and the limit for the tenant's sets. Returns {'saved'}, {'lost'} if the lease is lost, {'exists'},
-- {'expired'} if the files may already be deleted, or {'full', bytes}. A set that the same job stored earlier is
-- replaced.
local given = arguments({{'how', one_of('fit', 'import')}, ANY_ID, TOKEN, TENANT, MODEL, SET_NAME, {'replace', one_of('', '1')},
  named('document', NAME), named('weights', NAME), named('examples', NAME), named('bytes', SIZE), MOST_BYTES})
local tenant, member, files = given.tenant, member_of(given), root .. 'concept_files'
local old = read_set(tenant, member)
if old and old.weights == given.weights then return {'saved'} end -- sent again
if given.how == 'fit' and not holds(read_run(given.job_id), given.token) then return {'lost'} end
if old and given.replace == '' and (given.how == 'import' or old.job ~= given.job_id) then return {'exists'} end
if not call('ZSCORE', files, given.weights) or not call('ZSCORE', files, given.examples) then return {'expired'} end
local bytes = #given.document + given.bytes
local refused = too_much(tenant, bytes - (old and stored(old.bytes) or 0), given.max_tenant_bytes)
if refused then return refused end
if old then
  delete_later(old)
  drop_set(tenant, member, old)
end
call('ZREM', files, given.weights, given.examples)
call('HSET', set_key(tenant, member), 'document', given.document, 'revision', call('INCR', root .. 'concept_revision'),
  'weights', given.weights, 'examples', given.examples, 'bytes', string.format('%.0f', bytes), 'job', given.job_id)
call('ZADD', index_key(tenant), 0, member)
count('concept_bytes', tenant, bytes)
return {'saved'}
