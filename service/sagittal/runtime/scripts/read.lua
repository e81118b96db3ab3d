-- Returns {'1' where the job has ended, else '', element...} of a job's log from an offset to another; false where there
-- is no such job.
local given = arguments({ANY_ID, named('after_sequence', SIZE), {'until', integer(-1, MOST)}})
local id = given.job_id
local state = call('HGET', job_key(id), 'state')
if not state then return false end
local answer = call('LRANGE', log_key(id), exact(given.after_sequence), exact(given['until']))
table.insert(answer, 1, state == '' and '' or '1')
return answer
