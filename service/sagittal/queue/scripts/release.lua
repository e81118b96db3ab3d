-- Returns an unfinished execution to the queue; the attempt does not count. Returns {'ok'}, {'lost'},
-- or {'ok', reason, scope, id, token, attempt, worker, detail} if it must end now.
local given = arguments({ID, TOKEN})
local id, token = given.job_id, given.token
local run = read_run(id)
local repeated = run.state == 'queued' and run.token == token
if not repeated and not holds(run, token) then return {'lost'} end
if not repeated then
  unlease(id, run)
  call('HSET', run_key(id), 'state', 'queued', 'attempt', run.attempt - 1, 'worker', '')
  enqueue(id, run)
  for _, sub in ipairs(split(run.subs)) do
    local job = read_job(sub)
    -- The next sweep ends it, if the caller dies before it does.
    if job and due(run, job.deadline) then call('ZADD', root .. 'deadlines', exact(now), sub) end
  end
  announce_run(run)
end
if run.cancel == '' then return {'ok'} end
return {'ok', 'cancelled', 'run', id, run.token, run.attempt, run.worker, run.cancel}
