-- Counts ended jobs of a model version while its model has a canary, and ends the canary if it is worse: worker, time of
-- its report in nanoseconds, name, version, completed jobs, failed jobs, explanations with an insertion AUC, and their sum. A
-- repeated report counts once. Returns the reason if this report ended the canary, otherwise ''.
local given = arguments({named('worker', NAME), named('report', NANOSECONDS), named('name', NAME), named('version', NAME),
  named('completed', SIZE), named('failed', SIZE), named('scored', SIZE), {'insertion', number(0, MOST)}})
local name, version = given.name, given.version
local stored_canary = call('HGET', root .. 'canaries', name)
if not stored_canary then return '' end
local read, canary = pcall(cjson.decode, stored_canary)
if not read or type(canary) ~= 'table' or type(canary.reports) ~= 'table' or not tonumber(canary.share) then
  set_aside_field(root .. 'canaries', name, 'is not what the registry wrote')
  return ''
end
local latest = call('HGET', root .. 'latest', name)
if canary.version == latest then -- it was promoted
  call('HDEL', root .. 'canaries', name)
  return ''
end
local role = version == canary.version and 'canary' or version == latest and 'latest'
local reporter = given.worker .. '@' .. version
if not role or canary.reason ~= '' or canary.reports[reporter] == given.report then return '' end
canary.reports[reporter] = given.report
-- A report is repeated within seconds. The reports of workers that are gone must not accumulate.
for each, time in pairs(canary.reports) do
  if tonumber(given.report) - (tonumber(time) or 0) > 3600e9 then canary.reports[each] = nil end
end
local counts = canary[role] or {completed = 0, failed = 0, scored = 0, insertion = 0}
for _, each in ipairs({'completed', 'failed', 'scored', 'insertion'}) do counts[each] = counts[each] + given[each] end
canary[role] = counts

local tried, usual = canary.canary, canary.latest
if tried then
  local ended = tried.completed + tried.failed
  if ended >= canary.min_jobs and tried.failed > canary.max_failed * ended then
    canary.reason = string.format('%d of %d jobs failed; at most %g %% may', tried.failed, ended, 100 * canary.max_failed)
  elseif usual and math.min(tried.scored, usual.scored) >= math.max(1, canary.min_jobs) then
    local own, others = tried.insertion / tried.scored, usual.insertion / usual.scored
    if own < canary.min_faithfulness * others then
      canary.reason = string.format('its mean insertion AUC is %.3f, less than %g times the %.3f of version %s', own,
        canary.min_faithfulness, others, latest)
    end
  end
end
call('HSET', root .. 'canaries', name, cjson.encode(canary))
return canary.reason
