-- Appends the last events and the terminal one, ends the execution with all its jobs, and learns its cost.
-- Returns 'ok', 'lost', or 'full' if the events before the terminal one exceed the log's limit.
local given = arguments({ID, TOKEN, {'state', one_of('completed', 'failed', 'cancelled')}, named('cache_seconds', SECONDS),
  named('max_log_bytes', SIZE), ROOM[1], ROOM[2], {'evaluations', integer(0, MOST_EVALUATIONS)}, named('seconds', SECONDS),
  {'reason', any}}, {{'event', some, 'an event'}})
local id, token, state, cache_seconds = given.job_id, given.token, given.state, given.cache_seconds
local evaluations, seconds, elements = given.evaluations, given.seconds, given.rest
if #elements == 0 then refuse('event', '', 'the terminal event') end

-- A setting's cost is a mean that favours recent executions. If there are too many settings, the least recent is
-- deleted.
local most_settings, newest_share, kept_seconds = 32, 0.2, 30 * 86400

-- The time of a worker that a job takes from others: since the worker's last answer, if the job ran all that time. Summed
-- up it is the time in which the worker was busy, however many jobs it runs at once. A single value varies much, so its
-- mean is slow.
local device_share = 0.02
local function device_seconds(run)
  local last = stored(call('ZSCORE', root .. 'settled', run.worker))
  return last and math.min(seconds, math.max(now - last, 0)) or seconds
end

local function mean(old, new, share) return old + share * (new - old) end

local function learn_cost(run, device)
  local setting = call('HGET', run_key(id), 'setting')
  if not setting or setting == '' then return end
  local key = root .. 'cost:' .. run.method .. ':' .. run.model .. '@' .. run.version
  local count, spent, took = 0, evaluations, seconds
  local known = call('HGET', key, setting)
  if known then
    local old_spent, old_took, old_count = string.match(known, '(%S+) (%S+) (%d+)')
    local old_device = stored(string.match(known, '^%S+ %S+ %d+ (%S+) %S+$')) -- an older release did not write it
    old_spent, old_took, old_count = stored(old_spent), stored(old_took), stored(old_count)
    if not (old_spent and old_took and old_count) then
      set_aside_field(key, setting, 'is not a cost')
    else
      count = old_count
      local share = math.max(1 / (count + 1), newest_share)
      spent, took = mean(old_spent, spent, share), mean(old_took, took, share)
      device = mean(old_device or old_took, device, math.max(1 / (count + 1), device_share))
    end
  elseif call('HLEN', key) >= most_settings then
    local oldest, when
    for name, value in pairs(fields(key)) do
      local last = stored(string.match(value, '%S+$')) or 0
      if not when or last < when then oldest, when = name, last end
    end
    call('HDEL', key, oldest)
  end
  call('HSET', key, setting, string.format('%.9g %.9g %d %.9g %s', spent, took, math.min(count + 1, 1e6), device, exact(now)))
  call('EXPIRE', key, kept_seconds)
end

local function learn_pace(run)
  local old = stored(call('HGET', root .. 'pace', run.lane))
  local pace = evaluations / seconds
  call('HSET', root .. 'pace', run.lane, exact(old and mean(old, pace, newest_share) or pace))
  call('EXPIRE', root .. 'pace', kept_seconds)
end

local run = read_run(id)
if run.state == state and run.token == token then return 'ok' end
if not holds(run, token) then return 'lost' end
if #elements > 1 and log_bytes(id, elements) > given.max_log_bytes then return 'full' end
local device = device_seconds(run)
-- A later attempt may have continued from a checkpoint, so its time is not that of the whole execution.
if state == 'completed' and evaluations > 0 and seconds > 0 and run.attempt == '1' then
  learn_cost(run, device)
  learn_pace(run)
end
call('ZADD', root .. 'settled', exact(now), run.worker)
run.reason, run.spent = given.reason, {evaluations = evaluations, seconds = device}
make_room(size_of(elements), run.tenant, given) -- a full store does not stop accepted jobs
finish(id, run, state, elements)
if state == 'completed' and run.content ~= '' and cache_seconds > 0 then
  call('SET', root .. 'answer:' .. run.content, split(run.subs)[1], 'PX', string.format('%.0f', cache_seconds * 1000))
end
return 'ok'
