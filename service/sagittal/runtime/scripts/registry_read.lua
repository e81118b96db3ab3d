-- Returns {[NAME@VERSION, found or '', created, is latest, declared or '', revision, origin, wish, worker, ...], ...} of all
-- models, or of one version; an unknown one gives the names of all as strings. Arguments: 'all' or 'one', name, version or
-- '' for the latest.
local given = arguments({{'how_many', one_of('all', 'one')}, {'name', any}, {'version', any}})
local how_many, wanted, wanted_version = given.how_many, given.name, given.version
local clock = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', root .. 'workers', '-inf', clock[1] .. '.' .. string.format('%06d', clock[2]))
local workers = redis.call('ZRANGE', root .. 'workers', 0, -1)
local function get(hash, key) return redis.call('HGET', root .. hash, key) or '' end
local function read(key)
  local name, version = string.match(key, '^([^@]*)@(.*)$')
  local latest = get('latest', name) == version and '1' or ''
  local entry = {key, get('models', key), get('created', key), latest, get('declared', key), get('revisions', key),
    get('origins', key), get('wishes', key)}
  for _, worker in ipairs(workers) do
    local state = redis.call('HGET', root .. 'worker:' .. worker, key)
    if state then entry[#entry + 1] = state end
  end
  return entry
end
local function exists(key)
  return redis.call('HEXISTS', root .. 'declared', key) + redis.call('HEXISTS', root .. 'models', key) > 0
end
local function keys()
  local all, seen = {}, {}
  for _, hash in ipairs({'declared', 'models'}) do
    for _, key in ipairs(redis.call('HKEYS', root .. hash)) do
      if not seen[key] then
        seen[key] = true
        all[#all + 1] = key
      end
    end
  end
  return all
end

if how_many == 'one' then
  if wanted_version == '' then wanted_version = get('latest', wanted) end
  local key = wanted .. '@' .. wanted_version
  if exists(key) then return {read(key)} end
  return keys()
end
local answer = {}
for _, key in ipairs(keys()) do answer[#answer + 1] = read(key) end
return answer
