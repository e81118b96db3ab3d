-- Renews leases, except of an execution that its worker should have ended more than `lease_seconds` ago: that worker
-- hangs, and the sweep ends the execution after its lease. Returns for each (id, token): '' (renewed), 'lost',
-- 'expired' (past its deadline), or 'cancel:', the seconds since the cancellation, ':' and the reason.
local given = arguments({named('lease_seconds', SECONDS)}, {ID, TOKEN})
local seconds, beats = given.lease_seconds, given.rest
local answers = {}
for i = 1, #beats, 2 do
  local id = beats[i]
  local run = read_run(id)
  if not holds(run, beats[i + 1]) then
    answers[#answers + 1] = 'lost'
  else
    -- The worker itself ends an attempt at the deadline, with a partial answer; this is for a worker that does not.
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
