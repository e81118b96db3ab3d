-- Returns an unfinished execution to the queue; the attempt does not count. Returns {'ok'}, {'lost'},
-- or {'ok', reason, scope, id, token, attempt, worker, detail} if it must end now.
local given = arguments({ID, TOKEN})
local id, token = given.job_id, given.token
local run = read_run(id)
if run.state == 'queued' and run.token == token then return {'ok'} end
if not holds(run, token) then return {'lost'} end
unlease(id, run)
call('HSET', run_key(id), 'state', 'queued', 'attempt', run.attempt - 1, 'worker', '')
enqueue(id, run)
announce_run(run)
if run.cancel == '' then return {'ok'} end
return {'ok', 'cancelled', 'run', id, run.token, run.attempt, run.worker, run.cancel}
