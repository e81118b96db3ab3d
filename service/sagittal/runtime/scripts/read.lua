-- Returns {'1' where the job has ended, else '', element...} of a job's log from an offset to another; false where there
-- is no such job.
local state = call('HGET', job_key(ARGV[1]), 'state')
if not state then return false end
local answer = call('LRANGE', log_key(ARGV[1]), ARGV[2], ARGV[3])
table.insert(answer, 1, state == '' and '' or '1')
return answer
