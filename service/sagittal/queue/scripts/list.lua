-- Returns {page token or '', view...}: up to `limit` jobs, newest first, out of at most `scan` that it reads.
local function known(text)
  for _, state in ipairs(split(text)) do if not STATES[state] then return nil end end
  return text
end
local given = arguments({{'page_token', any}, named('limit', SIZE), named('scan', COUNT), {'tenant', any}, {'kind', any},
  {'model', any}, {'states', known, 'known states separated by commas'}, {'reason', any}})
local after, limit, scan = given.page_token, given.limit, given.scan
local tenant, kind, model, states, reason = given.tenant, given.kind, given.model, given.states, given.reason
local wanted = {}
for _, state in ipairs(split(states)) do wanted[state] = true end

local function matches(job)
  return job and (kind == '' or job[2] == kind) and (model == '' or job[4] == model)
    and (states == '' or wanted[job[3]]) and (reason == '' or job[17] == reason)
end

local page = {''}
local index = root .. 'jobs' .. (tenant ~= '' and ':' .. tenant or '')
local members = call('ZREVRANGEBYLEX', index, after == '' and '+' or '(' .. after, '-', 'LIMIT', 0, scan)
for i, member in ipairs(members) do
  local job = view(string.sub(member, 19))
  if matches(job) then page[#page + 1] = job end
  if #page > limit or (i == #members and #members == scan) then
    page[1] = member
    break
  end
end
return page
