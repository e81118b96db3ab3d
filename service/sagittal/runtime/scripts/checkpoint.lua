-- Stores the state from which another attempt goes on. Returns 'ok' or 'lost'.
local id, token, state = ARGV[1], ARGV[2], ARGV[3]
if not holds(read_run(id), token) then return 'lost' end
local change = #state - call('HSTRLEN', run_key(id), 'checkpoint')
call('HSET', run_key(id), 'checkpoint', state)
call('HINCRBY', run_key(id), 'bytes', change)
count_bytes(change)
return 'ok'
