-- Cancels a job with a reason. If others share its execution, only this job ends; a queued one ends now; a running one
-- is marked for its worker. Returns the view, or false if the job does not exist.
local given = arguments({ANY_ID, {'reason', any}, {'event', any}})
local id, reason, event = given.job_id, given.reason, given.event
local job = read_job(id)
if not job then return false end
if job.state ~= '' then return view(id) end
local run = read_run(job.run)
if not live(run) then return view(id) end -- the next sweep fails it, because its execution is damaged or missing
if #split(run.subs) > 1 then
  leave(id, job.run, run, 'cancelled', 'T' .. event)
elseif run.state == 'queued' then
  finish(job.run, run, 'cancelled', {'T' .. event})
elseif run.cancel == '' then
  call('HSET', run_key(job.run), 'cancel', reason, 'cancelled', exact(now))
  call('PUBLISH', root .. 'worker:' .. run.worker, id)
end
return view(id)
