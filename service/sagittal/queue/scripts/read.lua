-- Returns a page of a job's events after a sequence number: at most `limit` events, and `max_bytes` unless the first
-- event is larger. With `lasting`, passing events are left out if the job has ended. Returns false if the job does not
-- exist, else
--   '1' if the job has ended, else ''
--   the sequence number after which to continue, '' at the end of the log
--   '1' if the job's identity must be added to the execution's events, else ''
--   the bytes to append to each event for that, and the bytes to append to its terminal event
--   sequence numbers and elements in turn
-- Sequence 1 is the job's own event; then come the execution's log and the closing event.
local given = arguments({ANY_ID, named('after_sequence', SIZE), named('limit', COUNT), named('max_bytes', COUNT),
  {'lasting', one_of('', '1')}})
local id = given.job_id
local job = read_job(id)
if not job then return false end

-- Elements that are fetched at once, and bytes that may be read for each byte of a page.
local at_once, looks = 16, 4
local length = last_sequence(job)
local last = math.min(length, given.after_sequence + given.limit)
-- If a stored answer is shared, its lasting events have listed positions.
local lasting = job.stamp ~= '' and split(call('HGET', readers_key(job.run), 'lasting') or '')

-- Returns the last event of an ended job.
local function last_element()
  if job.closing ~= '' then return job.closing end
  if not lasting then return call('LINDEX', log_key(job.run), -1) end
  for _, position in ipairs(lasting) do if not token(position) then return nil end end
  return #lasting >= (stored(job.upto) or 0) and #lasting > 0 and call('LINDEX', log_key(job.run), lasting[#lasting])
end
if job.state ~= '' and not is_terminal(last_element()) then
  set_aside(job_key(id), 'has ended without a terminal event in its log')
  unlist_droppable('ended', job.tenant, id)
  stop_reading(job.run, job.tenant)
  return false
end

-- Returns elements from a sequence number: at least one, and several from the execution's log.
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
