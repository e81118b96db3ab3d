-- Leases the next execution for some models. An execution whose worker died is a suspect: only an idle worker gets it,
-- which passes '' for `busy`. With a `lane`, it looks at no other. Returns
--   {'lease', token, view fields..., request, trace, checkpoint or '', name, image, ...},
--   {'none'},
--   {'hold'}: this busy worker gets nothing until it is idle, because a suspect waits for it, or
--   {'end', reason, 'run', id, token, attempt, worker, detail}: this execution must end first.
local given = arguments({named('worker', NAME), named('nonce', NAME), named('lease_seconds', SECONDS),
  named('batch_every', COUNT), {'busy', one_of('', '1')}, {'lane', one_of('', 'interactive', 'batch')}}, {named('model', NAME)})
local worker, seconds, busy, names = given.worker, given.lease_seconds, given.busy == '1', given.rest
local take_key = root .. 'take:' .. given.nonce

local function describe(id)
  local run = fields(run_key(id))
  local answer = {'lease', run.token, id, run.kind, run.state, run.model, run.version, run.method or '', run.lane,
    run.tenant, run.request_id or '', run.created, '', run.deadline or '', run.attempt, run.worker or '',
    tostring(1 + call('LLEN', log_key(id))), (run.cancel or '') ~= '' and '1' or '', '', '', run.request, run.trace or '',
    run.checkpoint and '1' or '', run.checkpoint or '',
    run.alone or ''}
  add_images(answer, run)
  return answer
end

-- A repeated call returns the lease that it took, unless the execution has another one since.
local taken = call('GET', take_key)
if taken then
  local id, its_token = string.match(taken, '^(%S+) (%d+)$')
  if id and holds(read_run(id), its_token) then return describe(id) end
end

local turn = ((stored(call('GET', root .. 'turn')) or 0) + 1) % MOST

local function take(id, run, alone)
  dequeue(id, run)
  local token = math.max(tonumber(clock[1]) * 1000000 + tonumber(clock[2]), tonumber(run.token) + 1)
  call('HSET', run_key(id), 'token', string.format('%.0f', token), 'attempt', run.attempt + 1, 'state', 'running',
    'worker', worker, 'batch', 0, 'alone', alone)
  call('ZADD', root .. 'leases', exact(now + seconds), id)
  count('held', place(run), 1)
  call('SET', take_key, string.format('%s %.0f', id, token), 'EX', 60)
  call('SET', root .. 'turn', string.format('%.0f', turn)) -- a call that takes nothing writes nothing
  announce_run(run)
  return describe(id)
end

local lanes = turn % given.batch_every == 0 and {'batch', 'interactive'} or {'interactive', 'batch'}
if given.lane ~= '' then lanes = {given.lane} end

-- Returns name, execution and score of the first entry in one kind of queue.
local function head(kind)
  for _, lane in ipairs(lanes) do
    for i = 0, #names - 1 do
      local name = lane .. ':' .. names[(turn + i) % #names + 1]
      local found = call('ZRANGE', root .. kind .. name, 0, 0, 'WITHSCORES')
      if found[1] then return name, found[1], found[2] end
    end
  end
end

-- Removes an entry that is in the queue because of damage: its execution is missing, or is not queued here.
local function drop_ghost(name, id, run)
  for _, kind in ipairs({'ready:', 'alone:'}) do call('ZREM', root .. kind .. name, id) end
  note('ready:' .. name, id .. (run.state == '' and ' is not a run' or ' is not queued there'))
  if run.state == 'queued' and not fits_its_job(run) then
    quarantine_run(id, run, 'has another model than its job')
  elseif run.state == '' then
    call('ZREM', root .. 'age:' .. string.match(name, '^(.*)@'), id)
    must_fail(id)
  end
end

-- Returns an execution that can be leased; nil for a damaged one.
local function read_waiting(name, id)
  local run = read_run(id)
  if run.state ~= 'queued' or queue_name(run) ~= name then return drop_ghost(name, id, run) end
  local fault = not KINDS[run.kind] and 'kind is unknown'
    or call('HEXISTS', run_key(id), 'request') == 0 and 'request is missing'
    or not fits_its_job(run) and 'has another model than its job'
  if not fault then return run end
  dequeue(id, run)
  forget_empty(run)
  quarantine_run(id, run, fault)
end

-- Damaged entries that one call removes.
local MOST_GHOSTS = 100

for _ = 1, MOST_GHOSTS do
  local name, id, score = head('ready:')
  local alone_name, suspect, since = head('alone:')
  local overdue = suspect and now - tonumber(since) > seconds
  if suspect and busy and overdue then
    -- One worker at a time is kept free for it.
    local holder = root .. 'holds:' .. suspect
    if call('SET', holder, worker, 'NX', 'EX', 60) or call('GET', holder) == worker then return {'hold'} end
  end
  -- If both kinds wait, they are served in turn, so that neither starves.
  local alone = suspect and not busy and (not id or overdue and turn % 2 == 0)
  if alone then name, id = alone_name, suspect end
  if not id then
    for _, each in ipairs(names) do call('LLEN', root .. 'bell:' .. each) end -- workers block on these keys; moves damaged ones aside
    return {'none'}
  end
  local run = read_waiting(name, id)
  if run then
    local reason = due(run, run.deadline)
    if reason then return {'end', reason, 'run', id, run.token, run.attempt, run.worker, run.cancel} end
    if not alone then call('HSET', root .. 'share:' .. name, 'clock', score) end
    return take(id, run, alone and '1' or '')
  end
end
return {'none'}
