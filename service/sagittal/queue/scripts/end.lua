-- Ends an execution, or one of its jobs, with an event made by the queue, if its state is still as the caller saw it.
-- Returns false if it is not; otherwise the execution's trace context, which is empty for a job that shared an
-- execution.
local given = arguments({{'scope', one_of('run', 'job')}, ID, TOKEN, {'state', one_of('failed', 'cancelled')},
  {'reason', any}, {'event', any}})
local scope, id, state, element = given.scope, given.job_id, given.state, 'T' .. given.event
local run_id, job = id, nil
if scope == 'job' then
  job = read_job(id)
  if not job or job.state ~= '' then return false end
  run_id = job.run
end
local run = read_run(run_id)
if scope == 'job' and not live(run) and call('ZSCORE', root .. 'damaged', id) then
  close(id, run_id, {attempt = '0', worker = '', reason = given.reason, tenant = job.tenant}, state, element)
  return ''
end
if not live(run) or run.token ~= given.token then return false end
-- Since the caller looked, a job with a later deadline may have joined, or a late worker may have released it.
if run.state == 'queued' and not due(run, job and job.deadline or run.deadline) then return false end
run.reason = given.reason
if scope == 'job' and #split(run.subs) > 1 then
  leave(id, run_id, run, state, element)
  return ''
end
if run.state == 'running' and tonumber(call('ZSCORE', root .. 'leases', run_id) or 0) > now then return false end
local trace = call('HGET', run_key(run_id), 'trace')
finish(run_id, run, state, {element})
return trace or ''
