-- Removes a worker.
local worker = arguments({named('worker', NAME)}).worker
call('DEL', root .. 'worker:' .. worker)
call('ZREM', root .. 'workers', worker)
return 1
