-- Keeps leases alive, but not of a run that its worker should have ended by itself a lease's time ago: that worker hangs, and
-- the sweep ends the run when the lease has passed. For each (id, token) returns '' (kept), 'lost', or 'cancel:', the seconds since, ':' and the reason.
local given = arguments({named('lease_seconds', SECONDS)}, {ID, TOKEN})
local seconds, beats = given.lease_seconds, given.rest
local answers = {}
for i = 1, #beats, 2 do
  local id = beats[i]
  local run = pick(run_key(id), {'state', 'token', 'cancel', 'cancelled', 'deadline'})
  if not holds(run, beats[i + 1]) then
    answers[#answers + 1] = 'lost'
  else
    local overdue = run.deadline ~= '' and now > tonumber(run.deadline) + seconds
    local since = now - tonumber(run.cancelled ~= '' and run.cancelled or now)
    if not overdue and since <= seconds then call('ZADD', root .. 'leases', exact(now + seconds), id) end
    local cancelled = run.cancel ~= '' and string.format('cancel:%.6f:', since) .. run.cancel
    answers[#answers + 1] = cancelled or overdue and 'cancel:0:deadline' or ''
  end
end
return answers
