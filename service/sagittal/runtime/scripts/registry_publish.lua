-- Stores what a worker found of a version of a model: name, version, serialized model, time in nanoseconds, the revision that
-- it is about. Returns 0 where that is no longer what is registered. A name's first version is its latest.
local root, name, version = KEYS[1], ARGV[1], ARGV[2]
local key = name .. '@' .. version
if (redis.call('HGET', root .. 'revisions', key) or '0') ~= ARGV[5] then return 0 end
redis.call('HSET', root .. 'models', key, ARGV[3])
redis.call('HSETNX', root .. 'created', key, ARGV[4])
redis.call('HSETNX', root .. 'latest', name, version)
return 1
