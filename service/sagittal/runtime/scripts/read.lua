-- Returns the events of a job after a sequence number, at most `limit`: '1' where the job has ended, else ''; '1' where the run's
-- events are to be given the job's identity; what is appended to them for that; what is appended to its terminal event; the
-- elements. False where there is no such job. Position 0 is the job's own event, the run's log follows, then the closing one.
local given = arguments({ANY_ID, named('after_sequence', SIZE), {'limit', integer(-1, MOST)}})
local id = given.job_id
local job = pick(job_key(id), {'kind', 'state', 'run', 'request_id', 'accepted', 'closing', 'upto', 'stamp', 'age'})
if job.kind == '' then return false end
local last = last_sequence(job)
local first = given.after_sequence + 1
if given.limit >= 0 then last = math.min(last, given.after_sequence + given.limit) end

-- ExplanationEvent.job_id = 1, .request_id = 4
local identity = chunk(1, id) .. chunk(4, job.request_id)
local shared = (id ~= job.run or job.stamp ~= '') and '1' or ''
local answer = {job.state == '' and '' or '1', shared, job.stamp .. identity, job.age}
if first == 1 and last >= 1 then answer[5] = job.accepted end

-- Events that are lasting have positions of their own where an answer is given again.
local shown = last - ((job.closing ~= '' and last == last_sequence(job)) and 1 or 0)
if job.stamp ~= '' then
  local lasting = split(call('HGET', readers_key(job.run), 'lasting') or '')
  for sequence = math.max(first, 2), shown do
    answer[#answer + 1] = call('LINDEX', log_key(job.run), lasting[sequence - 1])
  end
elseif shown >= 2 and shown >= first then
  for _, element in ipairs(call('LRANGE', log_key(job.run), exact(math.max(first, 2) - 2), exact(shown - 2))) do
    answer[#answer + 1] = element
  end
end
if shown < last and first <= last then answer[#answer + 1] = job.closing end
return answer
