-- Ends a run, or one job of it, with an event that the queue made, where it still stands as it was seen.
-- Returns nothing where it did not, else the trace context that the run came with; empty of a job that shared another's.
local scope, id, token, state, element = ARGV[1], ARGV[2], ARGV[3], ARGV[4], 't' .. ARGV[6]
local run_id = id
if scope == 'job' then
  local job = pick(job_key(id), {'run', 'state', 'kind'})
  if job.kind == '' or job.state ~= '' then return false end
  run_id = job.run
end
local run = read_run(run_id)
if not live(run) or run.token ~= token then return false end
run.reason = ARGV[5]
if scope == 'job' and #split(run.subs) > 1 then
  leave(id, run_id, run, state, element)
  return ''
end
if run.state == 'running' and tonumber(call('ZSCORE', root .. 'leases', run_id) or 0) > now then return false end
local trace = call('HGET', run_key(run_id), 'trace')
finish(run_id, run, state, {element}, true)
return trace or ''
