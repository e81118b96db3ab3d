-- Forgets a worker.
redis.call('DEL', KEYS[1] .. 'worker:' .. ARGV[1])
redis.call('ZREM', KEYS[1] .. 'workers', ARGV[1])
return 1
