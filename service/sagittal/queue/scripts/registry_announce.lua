-- Announces a worker's models for a time: worker, seconds, then NAME@VERSION, state, and '1' if it can execute jobs for
-- it. Repeating an announcement is not logged.
local given = arguments({named('worker', NAME), named('seconds', SECONDS)}, {named('model', NAME), {'state', any}, {'serves', one_of('', '1')}})
local worker, seconds, states = given.worker, given.seconds, given.rest
local key = root .. 'worker:' .. worker
local till = string.format('%.6f', clock[1] + clock[2] / 1e6 + seconds)

local function is_known()
  for i = 1, #states, 3 do if call('HGET', key, states[i]) ~= states[i + 1] then return false end end
  return call('HLEN', key) * 3 == #states and call('ZSCORE', root .. 'workers', worker)
end

local function prolong()
  for i = 1, #states, 3 do
    if states[i + 2] == '1' then call('ZADD', root .. 'served', 'GT', till, states[i]) end
  end
  call('PEXPIRE', key, string.format('%.0f', math.max(seconds * 1000, 1)))
  call('ZADD', root .. 'workers', till, worker)
end

if is_known() then
  unlogged(prolong)
else
  call('DEL', key)
  for i = 1, #states, 3 do call('HSET', key, states[i], states[i + 1]) end
  prolong()
end
return 1
