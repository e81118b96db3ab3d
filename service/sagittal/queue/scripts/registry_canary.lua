-- Starts, changes or ends the canary of a model: name, version, share of the explanations (0 ends it), largest share of
-- failed jobs, smallest faithfulness relative to the latest version, jobs before a decision, and time in nanoseconds.
-- Returns 'done', 'unknown' if the version does not exist, or 'latest' if it is the latest one. Outcomes are counted anew.
local given = arguments({named('name', NAME), named('version', NAME), {'share', number(0, 1)}, {'max_failed', number(0, 1)},
  {'min_faithfulness', number(0, 1)}, named('min_jobs', SIZE), named('time', NANOSECONDS)})
local name, version = given.name, given.version
local key = name .. '@' .. version
if given.share == 0 then
  call('HDEL', root .. 'canaries', name)
  return 'done'
end
if call('HEXISTS', root .. 'declared', key) + call('HEXISTS', root .. 'models', key) == 0 then return 'unknown' end
if call('HGET', root .. 'latest', name) == version then return 'latest' end
call('HSET', root .. 'canaries', name, cjson.encode({version = version, share = given.share, max_failed = given.max_failed,
  min_faithfulness = given.min_faithfulness, min_jobs = given.min_jobs, time = given.time, reason = '', reports = {}}))
return 'done'
