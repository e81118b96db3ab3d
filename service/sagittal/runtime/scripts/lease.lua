-- Takes the next run of some models. Returns {'none'}, {'end', reason, 'run', id, token, attempt, worker, detail} for a run
-- that must end first, or {'lease', token, view fields..., request, trace, checkpoint or '', name, image, ...}.
local worker, nonce, seconds, every = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first_model = 5
local take_key = root .. 'take:' .. nonce

local function describe(id)
  local run = fields(run_key(id))
  local answer = {'lease', run.token, id, run.kind, run.state, run.model, run.version, run.method, run.lane, run.tenant,
    run.request_id, run.created, '', run.deadline, run.attempt, run.worker, tostring(call('LLEN', log_key(id))),
    run.cancel ~= '' and '1' or '', '', run.request, run.trace, run.checkpoint and '1' or '', run.checkpoint or ''}
  add_images(answer, run)
  return answer
end

local taken = call('GET', take_key)
if taken and call('HGET', run_key(taken), 'state') == 'running' then return describe(taken) end

local function take(id, run)
  dequeue(id, run)
  local token = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(run.token) + 1)
  call('HSET', run_key(id), 'token', string.format('%.0f', token), 'attempt', run.attempt + 1, 'state', 'running',
    'worker', worker, 'batch', 0)
  call('ZADD', root .. 'leases', exact(now + seconds), id)
  count('held', place(run), 1)
  call('SET', take_key, id, 'EX', 60)
  return describe(id)
end

local turn = call('INCR', root .. 'turn')
local lanes = turn % every == 0 and {'batch', 'interactive'} or {'interactive', 'batch'}
local models = #ARGV - first_model + 1
for _, lane in ipairs(lanes) do
  for i = 0, models - 1 do
    local name = lane .. ':' .. ARGV[first_model + (turn + i) % models]
    local head = call('ZRANGE', root .. 'ready:' .. name, 0, 0, 'WITHSCORES')
    local id = head[1]
    if id then
      local run = read_run(id)
      if run.cancel ~= '' then return {'end', 'cancelled', 'run', id, run.token, run.attempt, run.worker, run.cancel} end
      if run.deadline ~= '' and tonumber(run.deadline) <= now then
        return {'end', 'expired', 'run', id, run.token, run.attempt, run.worker, ''}
      end
      call('HSET', root .. 'share:' .. name, 'clock', head[2])
      return take(id, run)
    end
  end
end
return {'none'}
