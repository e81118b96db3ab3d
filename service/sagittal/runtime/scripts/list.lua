-- Returns {where to go on or '', view...}: up to `limit` jobs, newest first, out of at most `scan` that are looked at.
local after, limit, model, states, scan = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local wanted = {}
for _, state in ipairs(split(states)) do wanted[state] = true end
local page = {''}
local members = call('ZREVRANGEBYLEX', root .. 'jobs', after == '' and '+' or '(' .. after, '-', 'LIMIT', 0, scan)
for i, member in ipairs(members) do
  local job = view(string.sub(member, 19))
  if job and (model == '' or job[4] == model) and (states == '' or wanted[job[3]]) then page[#page + 1] = job end
  if #page > limit or (i == #members and #members == scan) then
    page[1] = member
    break
  end
end
return page
