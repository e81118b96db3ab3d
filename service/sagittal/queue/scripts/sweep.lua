-- Requeues executions whose worker was lost and deletes what has expired. Returns 1 if more has expired, else 0; a list
-- of damaged records that were moved aside, KIND, KEY and REASON separated by zero bytes; and then what must end, flat:
-- reason ('buried' for dead-lettered, 'cancelled', 'expired', 'damaged'), scope ('run' or 'job'), id, token, attempt,
-- worker, detail. A candidate sweeps only if it is elected: if no other sweeps now; otherwise the script returns {-1, {}}.
local given = arguments({named('limit', COUNT), named('max_attempts', COUNT), named('retention_seconds', SECONDS),
  named('image_retention_seconds', SECONDS), named('lease_seconds', SECONDS), named('attachment_seconds', SECONDS), {'audit', one_of('', '1')},
  named('batch_retention_seconds', SECONDS), {'candidate', any}, named('elected_seconds', SECONDS)})
if given.candidate ~= '' then
  local elected, left = call('GET', root .. 'sweeper'), call('TTL', root .. 'sweeper')
  -- One that is elected for longer sweeps less often than this process must.
  local suffices = left >= 0 and left <= given.elected_seconds + 1
  if elected and elected ~= given.candidate and suffices then return {-1, {}} end
  local milliseconds = string.format('%.0f', math.max(given.elected_seconds * 1000, 1))
  unlogged(function() call('SET', root .. 'sweeper', given.candidate, 'PX', milliseconds) end)
end
if given.audit == '1' or call('EXISTS', root .. 'audit') == 1 or not counts_agree() then audit() end

local limit, max_attempts = given.limit, given.max_attempts
local later = now + given.lease_seconds
local ends = {}
local function must_end(reason, scope, id, run, detail)
  for _, value in ipairs({reason, scope, id, run.token, run.attempt, run.worker, detail}) do ends[#ends + 1] = value end
end

for _, id in ipairs(call('ZRANGEBYSCORE', root .. 'leases', '-inf', exact(now), 'LIMIT', 0, limit)) do
  local run = read_run(id)
  if run.state ~= 'running' then
    call('ZREM', root .. 'leases', id)
    if run.state == '' then
      note('leases', id .. ' is not a run')
      must_fail(id)
    end
  elseif due(run, run.deadline) then
    must_end(due(run, run.deadline), 'run', id, run, run.cancel)
  elseif tonumber(run.attempt) >= max_attempts and run.alone ~= '' then
    must_end('buried', 'run', id, run, '')
  else
    unlease(id, run)
    run.suspect = '1'
    call('HSET', run_key(id), 'state', 'queued', 'suspect', run.suspect)
    enqueue(id, run)
    announce_run(run)
  end
end

for _, id in ipairs(call('ZRANGEBYSCORE', root .. 'deadlines', '-inf', exact(now), 'LIMIT', 0, limit)) do
  local job = read_job(id)
  local run = job and job.state == '' and read_run(job.run)
  if not run then
    call('ZREM', root .. 'deadlines', id)
  elseif not live(run) then
    call('ZREM', root .. 'deadlines', id)
    must_fail(id)
  elseif run.state == 'queued' or #split(run.subs) > 1 and run.deadline ~= job.deadline then
    must_end(due(run, job.deadline) or 'expired', 'job', id, run, run.cancel)
  else
    call('ZADD', root .. 'deadlines', exact(later), id) -- its worker ends it at the deadline
    call('ZADD', root .. 'leases', 'NX', exact(now), job.run)
  end
end

for _, id in ipairs(call('ZRANGE', root .. 'damaged', 0, limit - 1)) do
  local job = read_job(id)
  if not job or job.state ~= '' or live(read_run(job.run)) then
    call('ZREM', root .. 'damaged', id)
  else
    must_end('damaged', 'job', id, {token = '0', attempt = '0', worker = ''}, '')
  end
end

local more = 0
local function passed(name, age)
  local ids = call('ZRANGEBYSCORE', root .. name, '-inf', exact(now - age), 'LIMIT', 0, limit)
  if #ids == limit then more = 1 end
  return ids
end

for _, id in ipairs(passed('spent', given.image_retention_seconds)) do drop_run(id) end
for _, id in ipairs(passed('ended', given.retention_seconds)) do drop_job(id) end
call('ZREMRANGEBYSCORE', root .. 'settled', '-inf', exact(now - given.retention_seconds))
for _, id in ipairs(passed('attaching', given.attachment_seconds)) do
  drop_parts(id)
  call('ZREM', root .. 'attaching', id)
end
for _, member in ipairs(passed('batchchanges', given.batch_retention_seconds)) do
  local tenant, name = string.match(member, '^(.*):([^:]*)$')
  if tenant and call('SCARD', batch_key('batchlive', tenant, name)) == 0 then
    drop_batch(tenant, name)
  elseif tenant then
    touch_batch(tenant, name)
  end
  if not tenant then call('ZREM', root .. 'batchchanges', member) end
end
table.insert(ends, 1, keep('LPOP', 'quarantined', 100) or {})
table.insert(ends, 1, more)
return ends
