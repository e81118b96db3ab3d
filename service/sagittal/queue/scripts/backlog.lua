-- Returns a flat list: LANE:MODEL, queued, running, age of the oldest queued execution in seconds, estimated evaluations of
-- the queued ones.
arguments({})
local answer, evaluations = {}, {}
local waiting = call('HGETALL', root .. 'waiting') -- by version
for i = 1, #waiting, 2 do
  local where = string.match(waiting[i], '^evaluations:(.*)@[^@]*$')
  if where then evaluations[where] = (evaluations[where] or 0) + (stored(waiting[i + 1]) or 0) end
end
local function describe(where)
  local oldest = call('ZRANGE', root .. 'age:' .. where, 0, 0, 'WITHSCORES')
  answer[#answer + 1] = where
  answer[#answer + 1] = tostring(call('ZCARD', root .. 'age:' .. where))
  answer[#answer + 1] = string.format('%.0f', stored(call('HGET', root .. 'held', where)) or 0)
  answer[#answer + 1] = oldest[2] and string.format('%.6f', math.max(now - tonumber(oldest[2]), 0)) or '0'
  answer[#answer + 1] = string.format('%.0f', evaluations[where] or 0)
end

for _, where in ipairs(call('SMEMBERS', root .. 'lanes')) do
  if string.find(where, '^interactive:.') or string.find(where, '^batch:.') then
    describe(where)
  else
    call('SREM', root .. 'lanes', where)
    note('lanes', where .. ' is not a lane and model')
  end
end
return answer
