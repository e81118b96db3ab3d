-- Stores a worker's findings about a model version: name, version, serialized model, time in nanoseconds, and their
-- revision. Returns 0 if that revision is not the registered one. The first version of a name is its latest.
local given = arguments({named('name', NAME), named('version', NAME), {'model', any}, named('time', NANOSECONDS),
  {'revision', revision_or_nothing, 'digits'}})
local name, version = given.name, given.version
local key = name .. '@' .. version
if (call('HGET', root .. 'revisions', key) or '0') ~= given.revision then return 0 end
call('HSET', root .. 'models', key, given.model)
call('HSETNX', root .. 'created', key, given.time)
call('HSETNX', root .. 'latest', name, version)
return 1
