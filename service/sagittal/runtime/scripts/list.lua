-- Returns {where to go on or '', view...}: up to `limit` jobs, newest first, out of at most `scan` that are looked at.
local after, limit, scan = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local tenant, kind, model, states, reason = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
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
