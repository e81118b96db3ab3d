-- Appends the terminal event and ends the run with all its jobs. Returns 'ok' or 'lost'.
local id, token, state, element, cache_seconds = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local run = read_run(id)
if run.state == state and run.token == token then return 'ok' end
if not holds(run, token) then return 'lost' end
finish(id, run, state, element, false)
if state == 'completed' and run.content ~= '' and cache_seconds > 0 then
  call('SET', root .. 'answer:' .. run.content, split(run.subs)[1], 'PX', string.format('%.0f', cache_seconds * 1000))
end
return 'ok'
