-- Keeps leases alive, but not of a run that its worker should have ended by itself a lease's time ago: that worker hangs, and
-- the sweep ends the run when the lease has passed. For each (id, token) returns '' (kept), 'lost', 'expired' past its deadline, or 'cancel:',
-- the seconds since, ':' and the reason.
local given = arguments({named('lease_seconds', SECONDS)}, {ID, TOKEN})
local seconds, beats = given.lease_seconds, given.rest
local answers = {}
for i = 1, #beats, 2 do
  local id = beats[i]
  local run = read_run(id)
  if not holds(run, beats[i + 1]) then
    answers[#answers + 1] = 'lost'
  else
    -- Its worker ends it at the deadline by itself, with what it has: this is for one that does not.
    local overdue = run.deadline ~= '' and now > tonumber(run.deadline) + seconds
    local since = now - tonumber(run.cancelled ~= '' and run.cancelled or now)
    if not overdue and since <= seconds then call('ZADD', root .. 'leases', exact(now + seconds), id) end
    if run.cancel ~= '' then
      answers[#answers + 1] = string.format('cancel:%.6f:', since) .. run.cancel
    else
      answers[#answers + 1] = overdue and 'expired' or ''
    end
  end
end
return answers
