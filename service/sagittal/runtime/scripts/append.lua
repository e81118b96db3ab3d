-- Appends a numbered batch of elements to the logs of a run. Returns 'ok', 'lost', or 'full' past the log's bound.
local id, token, number, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local run = read_run(id)
if not holds(run, token) then return 'lost' end
if tonumber(run.batch) >= number then return 'ok' end
local elements = {unpack(ARGV, 5)}
if log_bytes(run, elements) > most then return 'full' end
push_all(id, run, elements)
call('HSET', run_key(id), 'batch', number)
return 'ok'
