-- Returns a page of a job's events after a sequence number, of at most `limit` and, but for the first, at most `max_bytes`:
-- '1' where the job has ended, else ''; the sequence number to go on after, '' at the end of what there is; '1' where the
-- run's events are to be given the job's identity; what is appended to them for that; what is appended to its terminal event;
-- then sequence numbers and elements in turns. With `lasting`, what is passing is left out of a job that has ended. False
-- where there is no such job. Sequence 1 is the job's own event, the run's log follows, then the closing one.
local given = arguments({ANY_ID, named('after_sequence', SIZE), named('limit', COUNT), named('max_bytes', COUNT),
  {'lasting', one_of('', '1')}})
local id = given.job_id
local job = read_job(id)
if not job then return false end

-- Elements that are read at once, and bytes that are looked at for each byte of a page.
local at_once, looks = 16, 4
local length = last_sequence(job)
local last = math.min(length, given.after_sequence + given.limit)
-- Events that are lasting have positions of their own where an answer is given again.
local lasting = job.stamp ~= '' and split(call('HGET', readers_key(job.run), 'lasting') or '')

-- The last event of a job that has ended.
local function last_element()
  if job.closing ~= '' then return job.closing end
  if not lasting then return call('LINDEX', log_key(job.run), -1) end
  for _, position in ipairs(lasting) do if not token(position) then return nil end end
  return #lasting >= (stored(job.upto) or 0) and #lasting > 0 and call('LINDEX', log_key(job.run), lasting[#lasting])
end
if job.state ~= '' and not is_terminal(last_element()) then
  set_aside(job_key(id), 'has ended, and its log has no terminal event')
  unlist_droppable('ended', job.tenant, id)
  stop_reading(job.run, job.tenant)
  return false
end

-- Returns the elements from a sequence number on: one at least, of the run's log a few.
local function elements_from(sequence)
  if sequence == 1 then return {job.accepted} end
  if sequence == length and job.closing ~= '' then return {job.closing} end
  if lasting then return {call('LINDEX', log_key(job.run), lasting[sequence - 1]) or 'e'} end
  local until_ = math.min(last - (job.closing ~= '' and last == length and 1 or 0), sequence + at_once - 1)
  return call('LRANGE', log_key(job.run), exact(sequence - 2), exact(until_ - 2))
end

-- ExplanationEvent.job_id = 1, .request_id = 4
local identity = chunk(1, id) .. chunk(4, job.request_id)
local shared = (id ~= job.run or job.stamp ~= '') and '1' or ''
local answer = {job.state == '' and '' or '1', '', shared, job.stamp .. identity, job.age}
local skips = given.lasting == '1' and job.state ~= ''
local sequence, bytes, looked, full = given.after_sequence + 1, 0, 0, false
while sequence <= last and not full do
  local elements = elements_from(sequence)
  if #elements == 0 then break end
  for _, element in ipairs(elements) do
    local kept = not skips or string.sub(element, 1, 1) ~= 'p'
    full = looked > looks * given.max_bytes or kept and bytes > 0 and bytes + #element > given.max_bytes
    if full then break end
    looked = looked + #element
    if kept then
      bytes = bytes + #element
      answer[#answer + 1] = exact(sequence)
      answer[#answer + 1] = element
    end
    sequence = sequence + 1
  end
end
if sequence <= length then answer[2] = exact(sequence - 1) end
return answer
