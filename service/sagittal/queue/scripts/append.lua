-- Appends a numbered batch of events to the log of an execution. Returns 'ok', 'lost', or 'full' past the log's limit.
local given = arguments({ID, TOKEN, named('number', COUNT), named('max_log_bytes', SIZE), ROOM[1], ROOM[2]}, {{'event', some, 'an event'}})
local id, elements = given.job_id, given.rest
local run = read_run(id)
if not holds(run, given.token) then return 'lost' end
if tonumber(run.batch) >= given.number then return 'ok' end
if log_bytes(id, elements) > given.max_log_bytes then return 'full' end
make_room(size_of(elements), run.tenant, given) -- a full store does not stop accepted jobs
push(id, run, elements)
call('HSET', run_key(id), 'batch', string.format('%.0f', given.number))
return 'ok'
