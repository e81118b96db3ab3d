-- Says how a worker stands to models, for a time: worker, seconds, then NAME@VERSION, state pairs.
local given = arguments({named('worker', NAME), named('seconds', SECONDS)}, {named('model', NAME), {'state', any}})
local worker, seconds, states = given.worker, given.seconds, given.rest
local clock = redis.call('TIME')
local key = root .. 'worker:' .. worker
redis.call('DEL', key)
for i = 1, #states, 2 do redis.call('HSET', key, states[i], states[i + 1]) end
redis.call('PEXPIRE', key, string.format('%.0f', math.max(seconds * 1000, 1)))
redis.call('ZADD', root .. 'workers', string.format('%.6f', clock[1] + clock[2] / 1e6 + seconds), worker)
return 1
