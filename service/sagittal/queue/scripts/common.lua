-- Shared by all scripts of the queue. Each script is sent as: shebang, arguments.lua, quarantine.lua, this file,
-- batches.lua, its own body.
--
-- A job is what a caller sees: state and event log. An execution is the work for it, which jobs with equal content
-- share; keys, fields and variables call it `run`. Each lease of an execution is an attempt. Keys:
--   job:ID             hash; includes its `accepted` event, and a `closing` event if it ended before its execution
--   run:ID             hash of an execution, with request and images; ID is that of the job that started it
--   log:ID             list of an execution's events, stored once for all jobs that share it
--   readers:ID         hash: the number of `jobs` that read the log, its `bytes`, and the positions of `lasting` events
--   parts:ID           hash of a job's large parts by name, with their `:bytes` and `:tenant`
--   attaching          zset of ids with parts but without a job, by time
--   bytes              string: all stored bytes
--   stored             hash of stored bytes: `uploads`, and for each tenant `uploads:NAME` and `tenant:NAME` (requests,
--                      images and events)
--   ready:LANE:MODEL@VERSION   zset of queued executions by fair-share tag
--   share:LANE:MODEL@VERSION   hash of fair-share tags by tenant
--   alone:LANE:MODEL@VERSION   zset by time of executions that wait for an idle worker, because a worker died with them
--   holds:ID           string: the busy worker that takes nothing else until it can lease this execution
--   age:LANE:MODEL     zset of queued executions by time
--   held               hash of the numbers of running executions by LANE:MODEL
--   lanes              set of LANE:MODEL
--   leases             zset of executions by expiry
--   deadlines          zset of jobs by deadline
--   jobs, jobs:TENANT  zsets by creation (lexicographic)
--   ended, ended:TENANT   zsets of ended jobs by time
--   spent, spent:TENANT   zsets of ended executions by time
--   pace               hash of model evaluations per second by lane
--   waiting            hash of jobs:LANE:MODEL@VERSION and evaluations:LANE:MODEL@VERSION of queued executions
--   tenants            the same, by tenant
--   served             zset of MODEL@VERSION by the time until which a worker serves it; 0 if none has
--   cost:METHOD:MODEL@VERSION   hash of costs by setting: evaluations, seconds, number of jobs, seconds of the worker, time
--   settled            zset of workers by the time of their last answer
--   bell:MODEL@VERSION list on which waiting workers block; each entry wakes one
--   turn               string: the number of leases, which decides who goes first
--   sweeper            string: the process that sweeps, for as long as it does
--   damaged            zset by time of jobs that must fail because their execution is damaged or missing
--   request:TENANT:KEY, flight:CONTENT, answer:CONTENT   strings: the id of a job or an execution
--   take:NONCE         string: the execution that a call of lease.lua took, and the token
-- Times are seconds since the epoch on Redis's clock. Scripts are atomic and never wait.

local end_item, forget_job_of_item -- in batches.lua

-- Formats a number exactly: Lua prints 14 digits, but times and tags need 17.
local function exact(number) return string.format('%.17g', number) end

local function job_key(id) return root .. 'job:' .. id end
local function run_key(id) return root .. 'run:' .. id end
local function log_key(id) return root .. 'log:' .. id end
local function readers_key(id) return root .. 'readers:' .. id end
local function parts_key(id) return root .. 'parts:' .. id end

local function fields(key)
  local flat, map = call('HGETALL', key), {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

local function pick(key, names)
  local values, map = call('HMGET', key, unpack(names)), {}
  for i, name in ipairs(names) do map[name] = values[i] or '' end
  return map
end

-- All fields of an execution except its payloads.
local RUN = {'kind', 'model', 'version', 'method', 'lane', 'tenant', 'request_id', 'created', 'deadline', 'estimate', 'load',
  'tag', 'token', 'attempt', 'worker', 'state', 'cancel', 'cancelled', 'subs', 'content', 'store', 'batch', 'bytes', 'suspect', 'alone'}

local function split(text)
  local parts = {}
  for part in string.gmatch(text, '[^,]+') do parts[#parts + 1] = part end
  return parts
end

local STATES = {queued = true, running = true, completed = true, failed = true, cancelled = true}
local function live(run) return run.state == 'queued' or run.state == 'running' end

-- Returns the first of these fields that is empty, or that is not a number.
local function first_empty(record, names)
  for _, name in ipairs(names) do if record[name] == '' then return name end end
end
local function first_not_number(record, names)
  for _, name in ipairs(names) do if not stored(record[name]) then return name end end
end

local RUN_TEXTS = {'kind', 'model', 'version', 'tenant', 'subs'}
local RUN_NUMBERS = {'created', 'estimate', 'tag', 'attempt', 'batch', 'bytes'}
local RUN_OPTIONAL = {'deadline', 'cancelled', 'load'}

-- Returns what is wrong with the fields of an execution; nil if they are valid.
local function fault_of_run(run)
  local empty, wrong = first_empty(run, RUN_TEXTS), first_not_number(run, RUN_NUMBERS)
  if empty then return empty .. ' is missing' end
  if wrong then return wrong .. ' is not a number' end
  for _, name in ipairs(RUN_OPTIONAL) do
    if run[name] ~= '' and not stored(run[name]) then return name .. ' is not a number' end
  end
  if run.lane ~= 'interactive' and run.lane ~= 'batch' then return 'lane is unknown' end
  if not STATES[run.state] then return 'state is unknown' end
  if not token(run.token) then return 'token is not a number' end
  for _, sub in ipairs(split(run.subs)) do if not identifier(sub) then return 'subs are not identifiers' end end
end

local JOB = {'run', 'kind', 'model', 'version', 'method', 'lane', 'tenant', 'request_id', 'created', 'deadline', 'fingerprint',
  'state', 'bytes', 'ended', 'attempt', 'worker', 'reason', 'accepted', 'closing', 'upto', 'stamp', 'age', 'labels', 'batch',
  'item'}
local JOB_TEXTS = {'run', 'kind', 'model', 'version', 'tenant', 'fingerprint', 'accepted'}
local JOB_NUMBERS = {'created', 'bytes'}
local ENDED_NUMBERS = {'ended', 'attempt'}

local function fault_of_job(job)
  local empty, wrong = first_empty(job, JOB_TEXTS), first_not_number(job, JOB_NUMBERS)
  if empty then return empty .. ' is missing' end
  if wrong then return wrong .. ' is not a number' end
  for _, name in ipairs({'deadline', 'upto', 'ended'}) do
    if job[name] ~= '' and not stored(job[name]) then return name .. ' is not a number' end
  end
  if not identifier(job.run) then return 'run is not an identifier' end
  if job.lane ~= 'interactive' and job.lane ~= 'batch' then return 'lane is unknown' end
  if job.state == '' then return nil end
  if not STATES[job.state] or live(job) then return 'state is unknown' end
  local number = first_not_number(job, ENDED_NUMBERS)
  return number and number .. ' is not a number'
end

local function count(hash, field, number)
  if number == 0 then return end
  local left = call('HINCRBY', root .. hash, field, number)
  if left <= 0 then call('HDEL', root .. hash, field) end
  if left < 0 then want_audit() end
end

-- Counts stored bytes of a tenant: requests, images and events, or uploads, which have their own limit.
local function count_stored(field, tenant, number)
  if number == 0 then return end
  if call('INCRBY', root .. 'bytes', number) < 0 then want_audit() end
  count('stored', field .. ':' .. tenant, number)
end
local function count_bytes(tenant, number) count_stored('tenant', tenant, number) end
local function count_uploads(tenant, number)
  count_stored('uploads', tenant, number)
  count('stored', 'uploads', number)
end
local function stored_by(field) return stored(call('HGET', root .. 'stored', field)) or 0 end

-- Ends a job's use of its execution's log; the last reader deletes the log. Damaged counts are left to the audit.
local function stop_reading(id, tenant)
  if not stored(call('HGET', readers_key(id), 'jobs')) then return want_audit() end
  if call('HINCRBY', readers_key(id), 'jobs', -1) > 0 then return end
  count_bytes(tenant, -(stored(call('HGET', readers_key(id), 'bytes')) or 0))
  call('UNLINK', readers_key(id), log_key(id))
end

-- Returns a job; nil if it does not exist. A damaged one is moved aside with its index entries; its execution continues
-- for the jobs that share it.
local function read_job(id)
  local job = pick(job_key(id), JOB)
  local fault = fault_of_job(job)
  if not fault then return job end
  if call('EXISTS', job_key(id)) == 0 then return nil end
  set_aside(job_key(id), fault)
  if identifier(job.run) and job.tenant ~= '' then stop_reading(job.run, job.tenant) end
  for _, index in ipairs({'ended', 'deadlines', 'damaged'}) do call('ZREM', root .. index, id) end
  return nil
end

-- Marks a job that has not ended, so that the next sweep fails it: its execution is damaged or missing.
local function must_fail(id)
  local job = read_job(id)
  if not job or job.state ~= '' then return end
  call('ZADD', root .. 'damaged', exact(now), id)
  want_audit()
end

-- Moves a damaged execution aside without the callers' data, which do not help to find the cause.
local function quarantine_run(id, run, fault)
  for _, name in ipairs(call('HKEYS', run_key(id))) do
    if name == 'request' or name == 'checkpoint' or string.sub(name, 1, 6) == 'image:' then
      call('HDEL', run_key(id), name)
    end
  end
  set_aside(run_key(id), fault)
  call('UNLINK', parts_key(id))
  for _, index in ipairs({'leases', 'spent'}) do call('ZREM', root .. index, id) end
  must_fail(id)
  for _, sub in ipairs(split(run.subs)) do
    local job = read_job(sub)
    if job and job.run == id then must_fail(sub) end
  end
end

-- Returns an execution; all fields are '' if it does not exist. A damaged one is moved aside, and its jobs will fail.
local function read_run(id)
  local run = pick(run_key(id), RUN)
  local fault = fault_of_run(run)
  if not fault then return run end
  if call('EXISTS', run_key(id)) == 1 then quarantine_run(id, run, fault) end
  return pick(run_key(id), RUN)
end

-- Returns whether an execution has the same model as the first of its remaining jobs.
local function fits_its_job(run)
  for _, sub in ipairs(split(run.subs)) do
    local job = read_job(sub)
    if job then return job.model == run.model and job.version == run.version end
  end
  return false
end

-- Indexes of what may be deleted to make room, oldest first, overall and by tenant: `spent` executions and `ended`
-- jobs.
local function list_droppable(kind, tenant, id, time)
  call('ZADD', root .. kind, exact(time), id)
  call('ZADD', root .. kind .. ':' .. tenant, exact(time), id)
end
local function unlist_droppable(kind, tenant, id)
  call('ZREM', root .. kind, id)
  call('ZREM', root .. kind .. ':' .. tenant, id)
end

local function drop_parts(id)
  local parts = pick(parts_key(id), {':bytes', ':tenant'})
  if parts[':bytes'] ~= '' then count_uploads(parts[':tenant'], -(stored(parts[':bytes']) or 0)) end
  call('UNLINK', parts_key(id))
end

-- In Protobuf the last value of a scalar field wins and nested messages merge, so fields are changed by appending.
local function varint(number)
  local bytes = ''
  while number >= 128 do
    bytes = bytes .. string.char(number % 128 + 128)
    number = math.floor(number / 128)
  end
  return bytes .. string.char(number)
end
local function chunk(tag, bytes) return varint(tag * 8 + 2) .. varint(#bytes) .. bytes end

local function size_of(elements)
  local bytes = 0
  for _, element in ipairs(elements) do bytes = bytes + #element end
  return bytes
end

local function is_terminal(element) return string.find(element or '', '^[tT]') ~= nil end

-- Notifies those who watch a tenant's explanations that one was added, changed its state, or went.
local function announce_change(kind, tenant, id)
  if kind == 'explanation' then call('PUBLISH', root .. 'changes:' .. tenant, id) end
end
local function announce_run(run)
  for _, sub in ipairs(split(run.subs)) do announce_change(run.kind, run.tenant, sub) end
end

local function announce_growth(job_id) call('PUBLISH', log_key(job_id), '') end

-- Appends elements to the log of an execution and notifies those who watch its jobs. An element is one letter and the
-- event: 'p' passing, 'e' lasting, 't' terminal, 'T' terminal and made by the queue, hence without any job's identity.
local function push(id, run, elements)
  for first = 1, #elements, 1000 do -- Lua limits the arguments of one call
    call('RPUSH', log_key(id), unpack(elements, first, math.min(first + 999, #elements)))
  end
  local bytes = size_of(elements)
  call('HINCRBY', readers_key(id), 'bytes', bytes)
  count_bytes(run.tenant, bytes)
  for _, sub in ipairs(split(run.subs)) do announce_growth(sub) end
end

-- Returns the bytes of an execution's log with these elements.
local function log_bytes(id, elements)
  return (stored(call('HGET', readers_key(id), 'bytes')) or 0) + size_of(elements)
end

-- Returns a job's last sequence number. It reads its execution's log up to its answer or to where it left; until then,
-- all.
local function last_sequence(job)
  local length = call('LLEN', log_key(job.run))
  return 1 + math.min(stored(job.upto) or length, length) + (job.closing ~= '' and 1 or 0)
end

local function place(run) return run.lane .. ':' .. run.model end
local function queue_name(run) return run.lane .. ':' .. run.model .. '@' .. run.version end

local function count_load(run, sign)
  local name, load = queue_name(run), tonumber(run.load) or tonumber(run.estimate)
  for what, number in pairs({jobs = 1, evaluations = load}) do
    count('waiting', what .. ':' .. name, sign * number)
    count('tenants', what .. ':' .. name .. ':' .. run.tenant, sign * number)
  end
end

local function enqueue(id, run)
  if (run.suspect or '') ~= '' then
    call('ZADD', root .. 'alone:' .. queue_name(run), exact(now), id)
  else
    call('ZADD', root .. 'ready:' .. queue_name(run), run.tag, id)
  end
  call('ZADD', root .. 'age:' .. place(run), run.created, id)
  call('SADD', root .. 'lanes', place(run))
  count_load(run, 1)
  local bell = root .. 'bell:' .. run.model .. '@' .. run.version
  if call('LLEN', bell) < 64 then call('LPUSH', bell, 1) end
end

local function dequeue(id, run)
  local ready, alone = root .. 'ready:' .. queue_name(run), root .. 'alone:' .. queue_name(run)
  if call('ZREM', alone, id) == 1 then
    call('DEL', root .. 'holds:' .. id)
  elseif call('ZREM', ready, id) == 0 then
    return
  end
  if call('EXISTS', ready) == 0 then
    call('DEL', root .. 'share:' .. queue_name(run))
    local name = ':' .. run.model .. '@' .. run.version
    if call('EXISTS', root .. 'ready:interactive' .. name, root .. 'ready:batch' .. name,
      root .. 'alone:interactive' .. name, root .. 'alone:batch' .. name) == 0 then
      call('DEL', root .. 'bell' .. name)
    end
  end
  call('ZREM', root .. 'age:' .. place(run), id)
  count_load(run, -1)
end

local function forget_empty(run)
  if call('EXISTS', root .. 'age:' .. place(run)) == 0 and call('HEXISTS', root .. 'held', place(run)) == 0 then
    call('SREM', root .. 'lanes', place(run))
  end
end

local function unlease(id, run)
  call('ZREM', root .. 'leases', id)
  count('held', place(run), -1)
end

local function holds(run, token) return run.state == 'running' and run.token == token end

-- Returns why an execution, or a job of it with this deadline, must end now; nil if it need not. The same rule applies
-- everywhere: an accepted cancellation ends it as cancelled, even if late; past its deadline it fails.
local function due(run, deadline)
  if run.cancel ~= '' then return 'cancelled' end
  if deadline ~= '' and tonumber(deadline) <= now then return 'expired' end
end

local function index_member(id, created) return string.format('%017.6f', tonumber(created)) .. ':' .. id end

-- Ends a job. `element` is its last event; `spent` is the cost of the execution, if it was computed for this job.
local function end_job(id, run, state, element, spent)
  local job = read_job(id)
  if not job then return end
  call('HSET', job_key(id), 'state', state, 'ended', exact(now), 'attempt', run.attempt, 'worker', run.worker,
    'reason', run.reason or '')
  call('ZREM', root .. 'deadlines', id)
  call('ZREM', root .. 'damaged', id)
  list_droppable('ended', job.tenant, id, now)
  end_item(id, job, state, element, spent)
  announce_change(job.kind, job.tenant, id)
end

-- Ends an execution and every job that shares it. The last element is the terminal event.
local function finish(id, run, state, elements)
  push(id, run, elements)
  for _, sub in ipairs(split(run.subs)) do end_job(sub, run, state, elements[#elements], sub == id and run.spent) end
  if run.state == 'running' then unlease(id, run) else dequeue(id, run) end
  call('HSET', run_key(id), 'state', state)
  call('HDEL', run_key(id), 'checkpoint')
  list_droppable('spent', run.tenant, id, now)
  drop_parts(id)
  forget_empty(run)
  if run.content ~= '' and call('GET', root .. 'flight:' .. run.content) == id then
    call('DEL', root .. 'flight:' .. run.content)
  end
end

-- Ends a job separately from its execution, with an event of its own.
local function close(id, run_id, run, state, element)
  call('HSET', job_key(id), 'closing', element, 'upto', call('LLEN', log_key(run_id)))
  call('HINCRBY', job_key(id), 'bytes', #element)
  count_bytes(run.tenant, #element)
  end_job(id, run, state, element)
  announce_growth(id)
end

-- Ends one of several jobs that share an execution; the execution continues for the others, until the latest of their
-- deadlines.
local function leave(id, run_id, run, state, element)
  close(id, run_id, run, state, element)
  local others, deadline = {}, nil
  for _, sub in ipairs(split(run.subs)) do
    if sub ~= id then
      local other = read_job(sub)
      others[#others + 1] = sub
      if other and deadline ~= '' and (not deadline or other.deadline == '' or tonumber(other.deadline) > tonumber(deadline)) then
        deadline = other.deadline
      end
    end
  end
  call('HSET', run_key(run_id), 'subs', table.concat(others, ','), 'deadline', deadline or run.deadline)
end

local function drop_run(id)
  local run = read_run(id)
  if run.state == '' then call('ZREM', root .. 'spent', id) return end
  call('UNLINK', run_key(id))
  unlist_droppable('spent', run.tenant, id)
  count_bytes(run.tenant, -(stored(run.bytes) or 0))
end

local function drop_job(id)
  local job = read_job(id)
  if not job then call('ZREM', root .. 'ended', id) return end
  forget_job_of_item(id, job)
  call('DEL', job_key(id))
  stop_reading(job.run, job.tenant)
  unlist_droppable('ended', job.tenant, id)
  local member = index_member(id, job.created)
  call('ZREM', root .. 'jobs', member)
  call('ZREM', root .. 'jobs:' .. job.tenant, member)
  count_bytes(job.tenant, -tonumber(job.bytes))
  if job.request_id ~= '' then
    local key = root .. 'request:' .. job.tenant .. ':' .. job.request_id
    if call('GET', key) == id then call('DEL', key) end
  end
  local answer = root .. 'answer:' .. job.tenant .. ':' .. job.fingerprint -- equals the content key, if the job has one
  if call('GET', answer) == id then call('DEL', answer) end
  announce_change(job.kind, job.tenant, id)
end

-- Returns the stored bytes as counted.
local function stored_bytes()
  local number = stored(call('GET', root .. 'bytes') or '0')
  if number then return number end
  set_aside(root .. 'bytes', 'is not a number')
  return 0
end

-- Deletes the oldest until there is room: executions first, because images are large and rarely requested again.
local function drop_oldest(whose, fits)
  for _, kind in ipairs({'spent', 'ended'}) do
    while not fits() do
      local oldest = call('ZRANGE', root .. kind .. whose, 0, 0)[1]
      if not oldest then break end
      if kind == 'spent' then drop_run(oldest) else drop_job(oldest) end
      call('ZREM', root .. kind .. whose, oldest) -- even if it was missing
    end
  end
  return fits()
end

-- Makes room for a tenant's requests, images and events. Past the tenant's limit only its own ended jobs are deleted.
-- Returns nothing, or the name of the exceeded limit and its value.
local ROOM = {named('max_bytes', SIZE), named('max_tenant_bytes', SIZE)}
local function make_room(bytes, tenant, given)
  local all, own = given.max_bytes, given.max_tenant_bytes
  local function fits_own() return stored_by('tenant:' .. tenant) + bytes <= own end
  local function fits_all() return stored_bytes() - stored_by('uploads') + bytes <= all end
  if bytes > own or not fits_own() and not drop_oldest(':' .. tenant, fits_own) then return 'tenant_bytes', own end
  if bytes > all or not fits_all() and not drop_oldest('', fits_all) then return 'bytes', all end
end

-- Appends name and image of each image in an execution's fields.
local function add_images(answer, run)
  for name, value in pairs(run) do
    if string.sub(name, 1, 6) == 'image:' then
      answer[#answer + 1] = string.sub(name, 7)
      answer[#answer + 1] = value
    end
  end
end

-- Kinds of jobs (`core.jobs.JobKind`). A job of another kind comes from a newer release and is not touched.
local KINDS = {explanation = true, prediction = true, regions = true, fit = true}

-- Returns the fields of a job that callers may see, in the order that `queue.scripts.parse_job` expects.
local function view(id)
  local job = read_job(id)
  if not job or not KINDS[job.kind] then return false end
  local run = job
  if job.state == '' then run = read_run(job.run) end
  local state, attempt = run.state, run.attempt
  if job.state == '' and not live(run) then
    must_fail(id)
    state, attempt = 'queued', '0' -- until the next sweep
  end
  return {id, job.kind, state, job.model, job.version, job.method, job.lane, job.tenant, job.request_id, job.created,
    job.ended, job.deadline, attempt, run.worker, tostring(last_sequence(job)),
    (run.cancel and run.cancel ~= '') and '1' or '', job.reason, job.labels}
end
