-- Forgets a worker.
local worker = arguments({named('worker', NAME)}).worker
redis.call('DEL', root .. 'worker:' .. worker)
redis.call('ZREM', root .. 'workers', worker)
return 1
