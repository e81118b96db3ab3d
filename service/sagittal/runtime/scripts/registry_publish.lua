-- Stores a version of a model: name, version, serialized model, time in nanoseconds; a name's first is its latest.
local root, name, version = KEYS[1], ARGV[1], ARGV[2]
redis.call('HSET', root .. 'models', name .. '@' .. version, ARGV[3])
redis.call('HSETNX', root .. 'created', name .. '@' .. version, ARGV[4])
redis.call('HSETNX', root .. 'latest', name, version)
return 1
