-- Stores the state from which a later attempt continues. Returns 'ok' or 'lost'.
local given = arguments({ID, TOKEN, {'checkpoint', any}})
local id, state = given.job_id, given.checkpoint
local run = read_run(id)
if not holds(run, given.token) then return 'lost' end
local change = #state - call('HSTRLEN', run_key(id), 'checkpoint')
call('HSET', run_key(id), 'checkpoint', state)
call('HINCRBY', run_key(id), 'bytes', change)
count_bytes(run.tenant, change)
return 'ok'
