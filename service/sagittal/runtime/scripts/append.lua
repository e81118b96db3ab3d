-- Appends a numbered batch of elements to the logs of a run. Returns 'ok', 'lost', or 'full' past the log's bound.
local id, token, number, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local run = read_run(id)
if not holds(run, token) then return 'lost' end
if tonumber(run.batch) >= number then return 'ok' end
local bytes = tonumber(call('HGET', job_key(split(run.subs)[1]), 'bytes'))
for i = 5, #ARGV do bytes = bytes + #ARGV[i] end
if bytes > most then return 'full' end
for i = 5, #ARGV do push_all(id, run, ARGV[i]) end
call('HSET', run_key(id), 'batch', number)
return 'ok'
