-- Recounts and reindexes everything from the jobs and executions, which are authoritative: after damage, and if a
-- service starts. Reads every job once.

local function read_all(index)
  local ids = {}
  for _, id in ipairs(call('ZRANGE', root .. index, 0, -1)) do ids[#ids + 1] = id end
  return ids
end

local function add(sums, field, number) sums[field] = (sums[field] or 0) + number end

local function rewrite(hash, sums)
  local before, same = fields(root .. hash), true
  for field, number in pairs(before) do same = same and stored(number) == sums[field] end
  for field in pairs(sums) do same = same and before[field] end
  if same then return end
  note(hash, 'had a wrong count')
  call('DEL', root .. hash)
  for field, number in pairs(sums) do call('HSET', root .. hash, field, string.format('%.0f', number)) end
end

-- Returns whether counts and indexes agree, as far as that can be checked cheaply.
local function counts_agree()
  if not stored(call('GET', root .. 'bytes') or '0') then return false end
  local counted, indexed, held = 0, 0, 0
  for field, number in pairs(fields(root .. 'waiting')) do
    local name = string.match(field, '^jobs:(.*)$')
    if name and call('ZCARD', root .. 'ready:' .. name) + call('ZCARD', root .. 'alone:' .. name) ~= stored(number) then
      return false
    end
    if name then counted = counted + stored(number) end
  end
  for _, where in ipairs(call('SMEMBERS', root .. 'lanes')) do indexed = indexed + call('ZCARD', root .. 'age:' .. where) end
  for _, number in ipairs(call('HVALS', root .. 'held')) do held = held + (stored(number) or 0) end
  return counted == indexed and held == call('ZCARD', root .. 'leases')
end

-- Recounts the readers of a log and its bytes; returns the bytes. Deletes a log without readers.
local function audit_log(id, jobs)
  if not jobs then call('UNLINK', readers_key(id), log_key(id)) return 0 end
  local known = pick(readers_key(id), {'jobs', 'bytes', 'lasting'})
  local bytes = stored(known.bytes)
  if known.bytes == '' and call('EXISTS', log_key(id)) == 0 then bytes = 0 end
  if stored(known.jobs) ~= jobs or not bytes then
    note('readers:' .. id, 'had a wrong count')
    bytes = #known.lasting
    for first = 0, call('LLEN', log_key(id)) - 1, 16 do
      bytes = bytes + size_of(call('LRANGE', log_key(id), first, first + 15))
    end
    call('HSET', readers_key(id), 'jobs', string.format('%.0f', jobs), 'bytes', string.format('%.0f', bytes))
  end
  return bytes
end

local function audit()
  local before = {bytes = call('GET', root .. 'bytes') or '0', lanes = call('SMEMBERS', root .. 'lanes')}
  local seen_jobs, seen_runs, bytes, by_owner, waiting, tenants, held, readers, owner = {}, {}, 0, {}, {}, {}, {}, {}, {}
  local function store(tenant, number)
    bytes = bytes + number
    if number > 0 then add(by_owner, 'tenant:' .. tenant, number) end
  end
  local function visit_parts(id)
    local parts = pick(parts_key(id), {':bytes', ':tenant'})
    local number = stored(parts[':bytes']) or 0
    bytes = bytes + number
    if number > 0 then
      add(by_owner, 'uploads:' .. parts[':tenant'], number)
      add(by_owner, 'uploads', number)
    end
  end

  local function visit_queued(id, run)
    local name, load = queue_name(run), stored(run.load) or stored(run.estimate)
    local alone = run.suspect ~= ''
    call('ZADD', root .. (alone and 'alone:' or 'ready:') .. name, 'NX', alone and exact(now) or run.tag, id)
    call('ZADD', root .. 'age:' .. place(run), 'NX', run.created, id)
    call('SADD', root .. 'lanes', place(run))
    call('ZREM', root .. 'leases', id)
    for what, number in pairs({jobs = 1, evaluations = load}) do
      add(waiting, what .. ':' .. name, number)
      add(tenants, what .. ':' .. name .. ':' .. run.tenant, number)
    end
  end

  local function visit_run(id)
    if seen_runs[id] ~= nil then return seen_runs[id] end
    local run = read_run(id)
    if live(run) and not fits_its_job(run) then
      quarantine_run(id, run, 'has another model than its job')
      run = read_run(id)
    end
    seen_runs[id] = run
    if run.state == '' then return run end
    store(run.tenant, stored(run.bytes))
    if live(run) then visit_parts(id) end
    if run.state == 'queued' then
      visit_queued(id, run)
    elseif run.state == 'running' then
      call('ZADD', root .. 'leases', 'NX', exact(now), id) -- the worker's next heartbeat renews it
      call('SADD', root .. 'lanes', place(run))
      add(held, place(run), 1)
    else
      call('ZADD', root .. 'spent', 'NX', exact(now), id)
      call('ZADD', root .. 'spent:' .. run.tenant, 'NX', exact(now), id)
    end
    return run
  end

  local function visit_job(id)
    if seen_jobs[id] then return end
    seen_jobs[id] = true
    local job = read_job(id)
    if not job then return end
    store(job.tenant, stored(job.bytes))
    add(readers, job.run, 1)
    owner[job.run] = job.tenant
    local member = index_member(id, job.created)
    call('ZADD', root .. 'jobs', 0, member)
    call('ZADD', root .. 'jobs:' .. job.tenant, 0, member)
    local run = visit_run(job.run)
    if job.state ~= '' then
      call('ZADD', root .. 'ended', 'NX', job.ended, id)
      call('ZADD', root .. 'ended:' .. job.tenant, 'NX', job.ended, id)
    elseif not live(run) then
      call('ZADD', root .. 'damaged', 'NX', exact(now), id)
    elseif job.deadline ~= '' then
      call('ZADD', root .. 'deadlines', 'NX', job.deadline, id)
    end
  end

  for _, member in ipairs(read_all('jobs')) do
    local id = string.sub(member, 19)
    visit_job(id)
    if call('EXISTS', job_key(id)) == 0 then call('ZREM', root .. 'jobs', member) end
  end
  for _, index in ipairs({'ended', 'deadlines', 'damaged', 'leases', 'spent'}) do
    for _, id in ipairs(read_all(index)) do
      if call('EXISTS', job_key(id)) == 1 then visit_job(id) end
      if call('EXISTS', run_key(id)) == 1 then visit_run(id) end
    end
  end
  for _, where in ipairs(before.lanes) do
    for _, id in ipairs(read_all('age:' .. where)) do
      local run = visit_run(id)
      if run.state ~= 'queued' or place(run) ~= where then call('ZREM', root .. 'age:' .. where, id) end
    end
    if call('EXISTS', root .. 'age:' .. where) == 0 and not held[where] then call('SREM', root .. 'lanes', where) end
  end
  for _, id in ipairs(read_all('attaching')) do visit_parts(id) end

  for id in pairs(seen_runs) do if not readers[id] then audit_log(id) end end
  for id, jobs in pairs(readers) do store(owner[id], audit_log(id, jobs)) end

  call('DEL', root .. 'load') -- written by releases before `waiting`
  rewrite('stored', by_owner)
  rewrite('waiting', waiting)
  rewrite('tenants', tenants)
  rewrite('held', held)
  if stored(before.bytes) ~= bytes then note('bytes', 'was ' .. before.bytes .. ' instead of ' .. string.format('%.0f', bytes)) end
  call('SET', root .. 'bytes', string.format('%.0f', bytes))
  call('DEL', root .. 'audit')
end
