-- Stores what a worker found of a version of a model: name, version, serialized model, time in nanoseconds, the revision that
-- it is about. Returns 0 where that is no longer what is registered. A name's first version is its latest.
local given = arguments({named('name', NAME), named('version', NAME), {'model', any}, named('time', NANOSECONDS),
  {'revision', revision_or_nothing, 'digits'}})
local name, version = given.name, given.version
local key = name .. '@' .. version
if (call('HGET', root .. 'revisions', key) or '0') ~= given.revision then return 0 end
call('HSET', root .. 'models', key, given.model)
call('HSETNX', root .. 'created', key, given.time)
call('HSETNX', root .. 'latest', name, version)
return 1
