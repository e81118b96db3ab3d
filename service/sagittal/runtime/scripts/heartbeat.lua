-- Keeps leases alive. For each (id, token) returns '' (kept), 'lost', or 'cancel:' and the reason.
local seconds = tonumber(ARGV[1])
local answers = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local run = pick(run_key(id), {'state', 'token', 'cancel', 'deadline'})
  if not holds(run, ARGV[i + 1]) then
    answers[#answers + 1] = 'lost'
  else
    call('ZADD', root .. 'leases', exact(now + seconds), id)
    -- A worker ends at the deadline by itself; this is for one that does not.
    local overdue = run.deadline ~= '' and now > tonumber(run.deadline) + seconds
    answers[#answers + 1] = run.cancel ~= '' and 'cancel:' .. run.cancel or overdue and 'cancel:deadline' or ''
  end
end
return answers
