-- Takes the next run of some models. A run whose worker died is a suspect: it goes to a worker that runs nothing else, which
-- says so by '' for `busy`. Returns {'hold'} to a busy one that is to take nothing more, since a suspect waits for it, and {'none'}, {'end', reason, 'run', id, token, attempt, worker, detail} for a run
-- that must end first, or {'lease', token, view fields..., request, trace, checkpoint or '', name, image, ...}.
local given = arguments({named('worker', NAME), named('nonce', NAME), named('lease_seconds', SECONDS),
  named('batch_every', COUNT), {'busy', one_of('', '1')}}, {named('model', NAME)})
local worker, seconds, busy, names = given.worker, given.lease_seconds, given.busy == '1', given.rest
local take_key = root .. 'take:' .. given.nonce

local function describe(id)
  local run = fields(run_key(id))
  local answer = {'lease', run.token, id, run.kind, run.state, run.model, run.version, run.method, run.lane, run.tenant,
    run.request_id, run.created, '', run.deadline, run.attempt, run.worker, tostring(1 + call('LLEN', log_key(id))),
    run.cancel ~= '' and '1' or '', '', run.request, run.trace, run.checkpoint and '1' or '', run.checkpoint or '',
    run.alone or ''}
  add_images(answer, run)
  return answer
end

local taken = call('GET', take_key)
if taken and call('HGET', run_key(taken), 'state') == 'running' then return describe(taken) end

local function take(id, run, alone)
  dequeue(id, run)
  local token = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(run.token) + 1)
  call('HSET', run_key(id), 'token', string.format('%.0f', token), 'attempt', run.attempt + 1, 'state', 'running',
    'worker', worker, 'batch', 0, 'alone', alone)
  call('ZADD', root .. 'leases', exact(now + seconds), id)
  count('held', place(run), 1)
  call('SET', take_key, id, 'EX', 60)
  return describe(id)
end

local turn = call('INCR', root .. 'turn')
local lanes = turn % given.batch_every == 0 and {'batch', 'interactive'} or {'interactive', 'batch'}

-- Returns name, run and score of what comes first in one kind of queue.
local function head(kind)
  for _, lane in ipairs(lanes) do
    for i = 0, #names - 1 do
      local name = lane .. ':' .. names[(turn + i) % #names + 1]
      local found = call('ZRANGE', root .. kind .. name, 0, 0, 'WITHSCORES')
      if found[1] then return name, found[1], found[2] end
    end
  end
end

local name, id, score = head('ready:')
local _, suspect, since = head('alone:')
local overdue = suspect and now - tonumber(since) > seconds
if suspect and busy and overdue then
  -- One worker at a time makes room for it.
  local holder = root .. 'holds:' .. suspect
  if call('SET', holder, worker, 'NX', 'EX', 60) or call('GET', holder) == worker then return {'hold'} end
end
-- Both kinds are served in turns where both wait, so that neither keeps the other out.
local alone = suspect and not busy and (not id or overdue and turn % 2 == 0)
if alone then id = suspect end
if not id then return {'none'} end
local run = read_run(id)
local reason = due(run, run.deadline)
if reason then return {'end', reason, 'run', id, run.token, run.attempt, run.worker, run.cancel} end
if not alone then call('HSET', root .. 'share:' .. name, 'clock', score) end
return take(id, run, alone and '1' or '')
