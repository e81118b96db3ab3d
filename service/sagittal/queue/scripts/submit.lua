-- Accepts a job. Returns {'new' | 'same' | 'cached' | 'joined', view}, {'reused', id}, or {'full', limit name, limit,
-- seconds until there is room or ''}. For an item of a batch also {'item', letter of its state, job, last event} if it is
-- known, or {'batch', 'unknown' | 'paused' | 'cancelled' | 'full'}.
local evaluations = {integer(1, MOST_EVALUATIONS)}
local new = arguments({ID, named('kind', NAME), named('model', NAME), named('version', NAME), {'method', any},
  {'lane', one_of('interactive', 'batch')}, named('tenant', NAME), {'request_id', any},
  {'deadline', seconds_or_nothing, 'seconds since the epoch, or nothing'},
  {'estimated_evaluations', integer(0, MOST_EVALUATIONS)}, {'trace', any}, {'content', any}, named('fingerprint', NAME),
  {'cache', one_of('use', 'refresh', 'bypass')}, {'accepted', any}, {'request', any}, named('max_queued', COUNT),
  named('max_tenant', COUNT), named('max_evaluations', COUNT), named('max_tenant_evaluations', COUNT),
  named('max_sharers', COUNT), ROOM[1], ROOM[2], named('assumed_evaluations', evaluations),
  {'weight', number(1e-6, 1e6)}, named('cache_seconds', SECONDS), {'setting', any},
  {'absent_share', number(0, 1)}, {'labels', any}, {'batch', found_batch, 'the name of a batch, or nothing'}, {'item', any},
  {'renew', one_of('', '1')}, named('max_items', COUNT)},
  {named('image', NAME), {'image', any}})
local images = new.rest
new.id = new.job_id

local request_key = root .. 'request:' .. new.tenant .. ':' .. new.request_id
local known, job = new.id, read_job(new.id)
if not job and new.request_id ~= '' then
  known = call('GET', request_key)
  job = known and read_job(known) -- nil if the job was damaged
end
if job then
  if job.fingerprint ~= new.fingerprint then return {'reused', known} end
  return {known == new.id and 'new' or 'same', view(known)}
end

-- Returns the answer for an item that is not to be queued; nil otherwise.
local function known_item()
  local batch = read_batch(new.tenant, new.batch)
  if not batch then return {'batch', 'unknown'} end
  local letter, id = read_item(new.tenant, new.batch, new.item)
  local its_job = letter and id ~= '' and read_job(id)
  if letter == FLIGHT and its_job and its_job.state ~= '' then
    end_item(id, its_job, its_job.state) -- by a release that knew no batches
    letter = LETTERS[its_job.state]
  end
  local lost = letter == FLIGHT and not its_job or letter == LETTERS.completed and not its_job and new.renew == '1'
  if letter and not lost then
    return {'item', letter, id, call('HGET', batch_key('batchfailures', new.tenant, new.batch), new.item) or ''}
  end
  if batch.state ~= 'open' then return {'batch', batch.state} end
  if not letter and counted('items', new.tenant) >= new.max_items then return {'batch', 'full'} end
end
if new.batch ~= '' then
  local answer = known_item()
  if answer then return answer end
end

local content = new.content ~= '' and new.cache ~= 'bypass' and new.content or ''
local may_share = content ~= '' and new.cache == 'use'

local size = #new.request
for i = 2, #images, 2 do size = size + #images[i] end

-- Returns the number of executions ahead of a new one in its lane.
local function ahead()
  return call('ZCARD', root .. 'age:' .. place(new)) + (stored(call('HGET', root .. 'held', place(new))) or 0)
end

-- ExplanationEvent.accepted = 10, Accepted.queue_position = 1
local function position(number) return number > 0 and chunk(10, '\8' .. varint(number)) or '' end

local function store_job(run, before)
  local created, accepted = exact(now), 'e' .. new.accepted .. position(before)
  call('HSET', job_key(new.id), 'run', run, 'kind', new.kind, 'model', new.model, 'version', new.version, 'method',
    new.method, 'lane', new.lane, 'tenant', new.tenant, 'request_id', new.request_id, 'created', created, 'deadline',
    new.deadline, 'fingerprint', new.fingerprint, 'state', '', 'accepted', accepted, 'bytes', #accepted + #new.labels, 'labels', new.labels)
  if new.batch ~= '' then
    call('HSET', job_key(new.id), 'batch', new.batch, 'item', new.item)
    write_item(new.tenant, new.batch, new.item, FLIGHT, new.id)
  end
  count_bytes(new.tenant, #accepted + #new.labels)
  call('HINCRBY', readers_key(run), 'jobs', 1)
  local member = index_member(new.id, created)
  call('ZADD', root .. 'jobs', 0, member)
  call('ZADD', root .. 'jobs:' .. new.tenant, 0, member)
  if new.deadline ~= '' then call('ZADD', root .. 'deadlines', new.deadline, new.id) end
  if new.request_id ~= '' then call('SET', request_key, new.id) end
  announce_change(new.kind, new.tenant, new.id)
end

-- Returns the positions of lasting events in the log of an ended execution, and their number.
local function find_lasting(run)
  local known = call('HGET', readers_key(run), 'lasting')
  if known then return known, #split(known) end
  local places, length = {}, call('LLEN', log_key(run))
  for first = 0, length - 1, 16 do
    for i, element in ipairs(call('LRANGE', log_key(run), first, first + 15)) do
      if string.sub(element, 1, 1) ~= 'p' then places[#places + 1] = string.format('%d', first + i - 1) end
    end
  end
  return table.concat(places, ','), #places
end

-- Shares a stored answer: the job reads the log of its execution, without passing events, and with the answer's age.
local function answer()
  local source = call('GET', root .. 'answer:' .. content)
  if not source then return false end
  local found = read_job(source)
  local ended = found and stored(found.ended)
  if not ended or now - ended > new.cache_seconds then return false end
  local lasting, count = find_lasting(found.run)
  local final = token(string.match(lasting, '%d+$') or '')
  if not final or not is_terminal(call('LINDEX', log_key(found.run), final)) then return false end -- the log is damaged
  -- ExplanationEvent.time = 3, Timestamp.seconds = 1, .nanos = 2
  local seconds, nanos = tonumber(clock[1]), tonumber(clock[2]) * 1000
  local stamp = chunk(3, '\8' .. varint(seconds) .. '\16' .. varint(nanos))
  -- ExplanationEvent.completed = 21, Completed.cache_age = 18, Duration.seconds = 1, .nanos = 2
  local past = math.max(now - ended, 0)
  local whole = math.floor(past)
  local age = chunk(21, chunk(18, '\8' .. varint(whole) .. '\16' .. varint(math.floor((past - whole) * 1e9))))
  local own, marks = #stamp + #age, call('HEXISTS', readers_key(found.run), 'lasting') == 0 and #lasting or 0
  unlist_droppable('ended', new.tenant, source) -- so that make_room does not delete the answer itself
  local full = make_room(#new.accepted + #new.labels + 1 + own + marks, new.tenant, new)
  list_droppable('ended', new.tenant, source, ended)
  if full then return false end
  store_job(found.run, 0)
  call('HSET', job_key(new.id), 'stamp', stamp, 'age', age, 'upto', count)
  call('HINCRBY', job_key(new.id), 'bytes', own)
  call('HSET', readers_key(found.run), 'lasting', lasting)
  call('HINCRBY', readers_key(found.run), 'bytes', marks)
  count_bytes(new.tenant, own + marks)
  end_job(new.id, {attempt = '0', worker = '', tenant = new.tenant}, 'completed')
  return true
end

-- Returns whether an execution has enough time: one with a much earlier deadline would truncate the job's answer.
local function in_time(run)
  if run.state == 'queued' or run.deadline == '' then return true end
  if new.deadline == '' then return false end
  return tonumber(run.deadline) - now >= (tonumber(new.deadline) - now) / 2
end

-- Joins a running or queued execution: the job reads its log from the beginning.
local function join()
  local id = call('GET', root .. 'flight:' .. content)
  if not id then return false end
  local run = read_run(id)
  if not live(run) or run.cancel ~= '' or not in_time(run) then return false end
  local subs = split(run.subs)
  if #subs == 0 or #subs >= new.max_sharers then return false end
  if make_room(#new.accepted + #new.labels + 1, new.tenant, new) then return false end
  local before = run.state == 'queued' and call('ZRANK', root .. 'age:' .. place(run), id) or 0
  store_job(id, before)
  call('HSET', run_key(id), 'subs', run.subs .. ',' .. new.id)
  if run.state ~= 'queued' then return true end
  if run.deadline ~= '' and (new.deadline == '' or tonumber(new.deadline) > tonumber(run.deadline)) then
    call('HSET', run_key(id), 'deadline', new.deadline)
  end
  if run.lane == 'batch' and new.lane == 'interactive' then
    dequeue(id, run)
    forget_empty(run)
    run.lane = 'interactive'
    run.tag = exact(stored(call('HGET', root .. 'share:' .. queue_name(run), 'clock')) or 0)
    call('HSET', run_key(id), 'lane', run.lane, 'tag', run.tag)
    enqueue(id, run)
  end
  return true
end

if may_share and answer() then return {'cached', view(new.id)} end
if may_share and join() then return {'joined', view(new.id)} end

local estimate = new.estimated_evaluations == 0 and new.assumed_evaluations or new.estimated_evaluations

local function is_absent(model)
  local till = call('ZSCORE', root .. 'served', model)
  return till and tonumber(till) <= now
end

-- Jobs for a model that no worker serves cannot leave the queue. Each such model is limited like a lane of its own, to
-- a share of the lane's limits, and takes nothing from models that are served.
local own_model = new.model .. '@' .. new.version
local absent = is_absent(own_model)
local function bound(number) return absent and math.max(math.floor(number * new.absent_share), 1) or number end
local max_jobs, max_evaluations = bound(new.max_queued), bound(new.max_evaluations)
local max_tenant = bound(new.max_tenant)
local max_tenant_evaluations = math.min(bound(new.max_tenant_evaluations), max_evaluations)
-- One job counts as at most its tenant's limit, so that no job alone exceeds the lane's limit.
local load = math.min(estimate, max_tenant_evaluations)

local beside, mine = {jobs = 0, evaluations = 0}, {jobs = 0, evaluations = 0}
for field, number in pairs(fields(root .. 'waiting')) do
  local what, lane, model = string.match(field, '^(%a+):(%a+):(.+)$')
  local counts = absent and model == own_model or not absent and model and not is_absent(model)
  if lane == new.lane and counts and beside[what] then
    beside[what] = beside[what] + (stored(number) or 0)
    mine[what] = mine[what] + (stored(call('HGET', root .. 'tenants', field .. ':' .. new.tenant)) or 0)
  end
end

-- Returns the seconds until so many evaluations have left the lane, at the pace of the running executions; '' if none
-- runs.
local function seconds_for(number)
  local held, lane = 0, new.lane .. ':'
  for name, runs in pairs(fields(root .. 'held')) do
    if string.sub(name, 1, #lane) == lane then held = held + (stored(runs) or 0) end
  end
  local pace = held * (stored(call('HGET', root .. 'pace', new.lane)) or 0)
  return pace > 0 and exact(number / pace) or ''
end

local function full(what, most, seconds) return {'full', what, string.format('%.0f', most), seconds or ''} end
local function full_of(what, most, number)
  if absent then return full('absent_' .. what, most) end
  return full(what, most, seconds_for(number))
end
if beside.jobs >= max_jobs then return full_of('lane', max_jobs, beside.evaluations / beside.jobs) end
if mine.jobs >= max_tenant then return full_of('tenant', max_tenant, beside.evaluations / mine.jobs) end
local excess, own_excess = beside.evaluations + load - max_evaluations, mine.evaluations + load - max_tenant_evaluations
if excess > 0 then return full_of('evaluations', max_evaluations, excess) end
if own_excess > 0 then
  return full_of('tenant_evaluations', max_tenant_evaluations, own_excess * beside.evaluations / mine.evaluations)
end
local what, most = make_room(size + #new.accepted + #new.labels + 1, new.tenant, new)
if what then return full(what, most) end

store_job(new.id, ahead())
local run = {lane = new.lane, model = new.model, version = new.version, tenant = new.tenant, estimate = string.format('%.0f', estimate),
  load = string.format('%.0f', load),
  created = exact(now)}
local share = root .. 'share:' .. queue_name(run)
local begun = math.max(stored(call('HGET', share, 'clock')) or 0, stored(call('HGET', share, 't:' .. new.tenant)) or 0)
run.tag = exact(begun + estimate / new.weight)
call('HSET', share, 't:' .. new.tenant, run.tag)
call('HSET', run_key(new.id), 'kind', new.kind, 'model', new.model, 'version', new.version, 'method', new.method, 'lane',
  new.lane, 'tenant', new.tenant, 'request_id', new.request_id, 'created', run.created, 'deadline', new.deadline,
  'estimate', run.estimate, 'load', run.load, 'tag', run.tag, 'token', '0', 'attempt', '0', 'worker', '', 'state', 'queued', 'cancel', '',
  'subs', new.id, 'content', content, 'trace', new.trace, 'request', new.request, 'bytes', size, 'batch', '0',
  'setting', new.setting)
call('ZREM', root .. 'attaching', new.id)
for i = 1, #images, 2 do call('HSET', run_key(new.id), 'image:' .. images[i], images[i + 1]) end
count_bytes(new.tenant, size)
if content ~= '' then call('SET', root .. 'flight:' .. content, new.id) end
enqueue(new.id, run)
return {'new', view(new.id)}
