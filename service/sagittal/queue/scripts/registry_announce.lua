-- Announces a worker's models for a time: worker, seconds, then NAME@VERSION, state, and '1' if it can execute jobs for
-- it.
local given = arguments({named('worker', NAME), named('seconds', SECONDS)}, {named('model', NAME), {'state', any}, {'serves', one_of('', '1')}})
local worker, seconds, states = given.worker, given.seconds, given.rest
local key = root .. 'worker:' .. worker
call('DEL', key)
local till = string.format('%.6f', clock[1] + clock[2] / 1e6 + seconds)
for i = 1, #states, 3 do
  call('HSET', key, states[i], states[i + 1])
  if states[i + 2] == '1' then call('ZADD', root .. 'served', 'GT', till, states[i]) end
end
call('PEXPIRE', key, string.format('%.0f', math.max(seconds * 1000, 1)))
call('ZADD', root .. 'workers', till, worker)
return 1
