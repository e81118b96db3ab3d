-- Registers a model version: name, version, declaration, time in nanoseconds, how ('register', 'update' or 'file'), '1'
-- to make it the latest, and for 'update' the revision that it replaces, or ''. Returns {verdict, revision}. If the
-- declaration changes, the findings of workers about the previous one are deleted.
local given = arguments({named('name', NAME), named('version', NAME), {'declaration', any}, named('time', NANOSECONDS),
  {'how', one_of('register', 'update', 'file')}, {'latest', one_of('', '1')}, {'revision', revision_or_nothing, 'digits'}})
local name, version, declaration = given.name, given.version, given.declaration
local how, latest, expected = given.how, given.latest, given.revision
local key = name .. '@' .. version
local before = call('HGET', root .. 'declared', key)
local revision = call('HGET', root .. 'revisions', key) or '0'
local same = before == declaration
local known = before or call('HEXISTS', root .. 'models', key) == 1

if how == 'update' and not known then return {'unknown', revision} end
if how == 'update' and expected ~= '' and expected ~= revision and not same then return {'changed', revision} end
if how == 'register' and known and not same then return {'exists', revision} end
if how == 'file' and before and not same and call('HGET', root .. 'origins', key) == 'api' then
  return {'kept', revision}
end

if not same then
  revision = call('INCR', root .. 'revision')
  for _, other in ipairs(call('HVALS', root .. 'revisions')) do revision = math.max(revision, (stored(other) or 0) + 1) end
  revision = string.format('%.0f', revision)
  call('SET', root .. 'revision', revision) -- so that a damaged counter repeats no revision
  call('HSET', root .. 'declared', key, declaration)
  call('HSET', root .. 'revisions', key, revision)
  call('HSET', root .. 'origins', key, how == 'file' and 'file' or 'api')
  call('HSETNX', root .. 'created', key, given.time)
  call('HDEL', root .. 'models', key)
  call('HDEL', root .. 'wishes', key)
  call('PUBLISH', root .. 'models', call('INCR', root .. 'changes'))
  call('ZADD', root .. 'served', 'NX', 0, key)
end
if latest == '1' and not (how == 'file' and same) then
  call('HSET', root .. 'latest', name, version)
else
  call('HSETNX', root .. 'latest', name, version)
end
return {'done', tostring(revision)}
