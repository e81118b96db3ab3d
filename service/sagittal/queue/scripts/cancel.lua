-- Cancels a job with a reason: one that shares a run leaves it, a queued one ends, a running one is marked.
-- Returns the view, or false where there is no such job.
local given = arguments({ANY_ID, {'reason', any}, {'event', any}})
local id, reason, event = given.job_id, given.reason, given.event
local job = read_job(id)
if not job then return false end
if job.state ~= '' then return view(id) end
local run = read_run(job.run)
if not live(run) then return view(id) end -- it will fail: its run is damaged or gone
if #split(run.subs) > 1 then
  leave(id, job.run, run, 'cancelled', 'T' .. event)
elseif run.state == 'queued' then
  finish(job.run, run, 'cancelled', {'T' .. event})
elseif run.cancel == '' then
  call('HSET', run_key(job.run), 'cancel', reason, 'cancelled', exact(now))
  call('PUBLISH', root .. 'worker:' .. run.worker, id)
end
return view(id)
