-- Returns {position to continue at or '', view...}: up to `limit` jobs, newest first, out of at most `scan` that are looked at. With
-- `count` it returns {position to continue at or '', state, number, ...} of the jobs that it looked at.
local function known(text)
  for _, state in ipairs(split(text)) do if not STATES[state] then return nil end end
  return text
end
local given = arguments({{'page_token', any}, named('limit', SIZE), named('scan', COUNT), {'tenant', any}, {'kind', any},
  {'model', any}, {'states', known, 'known states separated by commas'}, {'reason', any}, {'method', any}, {'request_id', any},
  {'labels', any}, {'after', seconds_or_nothing, 'seconds since the epoch, or nothing'},
  {'before', seconds_or_nothing, 'seconds since the epoch, or nothing'}, {'count', one_of('', '1')}})
local limit, scan, states = given.limit, given.scan, given.states
local wanted, labels = {}, {}
for _, state in ipairs(split(states)) do wanted[state] = true end
for label in string.gmatch(given.labels, '[^&]+') do labels[#labels + 1] = '&' .. label .. '&' end

local function has_labels(job)
  for _, label in ipairs(labels) do if not string.find(job[18], label, 1, true) then return false end end
  return true
end

local function is(given_value, value) return given_value == '' or given_value == value end

local function matches(job)
  return job and is(given.kind, job[2]) and is(given.model, job[4]) and (states == '' or wanted[job[3]])
    and is(given.reason, job[17]) and is(given.method, job[6]) and is(given.request_id, job[9]) and has_labels(job)
end

-- A member of the index begins with its time, so that members of this time and later are greater.
local function at(seconds) return string.format('%017.6f', tonumber(seconds)) end
local newest = given.page_token ~= '' and '(' .. given.page_token or given.before ~= '' and '(' .. at(given.before) or '+'
local oldest = given.after ~= '' and '[' .. at(given.after) or '-'

local page, tally = {''}, {}
local index = root .. 'jobs' .. (given.tenant ~= '' and ':' .. given.tenant or '')
local members = call('ZREVRANGEBYLEX', index, newest, oldest, 'LIMIT', 0, scan)
for i, member in ipairs(members) do
  local job = view(string.sub(member, 19))
  if matches(job) then
    tally[job[3]] = (tally[job[3]] or 0) + 1
    if given.count == '' then page[#page + 1] = job end
  end
  if #page > limit or (i == #members and #members == scan) then
    page[1] = member
    break
  end
end
if given.count == '' then return page end
for state, number in pairs(tally) do
  page[#page + 1] = state
  page[#page + 1] = number
end
return page
