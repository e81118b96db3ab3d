-- Returns {[NAME@VERSION, model, created, is latest, worker, ...], ...} of all models, or of one version; an unknown one gives
-- the names of all as strings. Arguments: 'all' or 'one', name, version or '' for the latest.
local root, how_many, wanted, wanted_version = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', root .. 'workers', '-inf', clock[1] .. '.' .. string.format('%06d', clock[2]))
local workers = redis.call('ZRANGE', root .. 'workers', 0, -1)
local function read(key, model)
  local name, version = string.match(key, '^([^@]*)@(.*)$')
  local latest = redis.call('HGET', root .. 'latest', name) == version
  local entry = {key, model, redis.call('HGET', root .. 'created', key) or '0', latest and '1' or ''}
  for _, worker in ipairs(workers) do
    local state = redis.call('HGET', root .. 'worker:' .. worker, key)
    if state then entry[#entry + 1] = state end
  end
  return entry
end

if how_many == 'one' then
  if wanted_version == '' then wanted_version = redis.call('HGET', root .. 'latest', wanted) or '' end
  local key = wanted .. '@' .. wanted_version
  local model = redis.call('HGET', root .. 'models', key)
  if model then return {read(key, model)} end
  return redis.call('HKEYS', root .. 'models')
end
local flat, answer = redis.call('HGETALL', root .. 'models'), {}
for i = 1, #flat, 2 do answer[#answer + 1] = read(flat[i], flat[i + 1]) end
return answer
