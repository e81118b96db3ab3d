-- Says how a worker stands to models, for a time: worker, seconds, then NAME@VERSION, state pairs.
local root, worker, seconds = KEYS[1], ARGV[1], tonumber(ARGV[2])
local clock = redis.call('TIME')
local key = root .. 'worker:' .. worker
redis.call('DEL', key)
for i = 3, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', key, math.ceil(seconds * 1000))
redis.call('ZADD', root .. 'workers', string.format('%.6f', clock[1] + clock[2] / 1e6 + seconds), worker)
return 1
