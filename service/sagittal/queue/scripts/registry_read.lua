-- Returns {[NAME@VERSION, findings or '', created, is latest, declaration or '', revision, origin, wish, worker, ...],
-- ...} for all models, or for one version; if that is unknown, the names of all as strings. Arguments: 'all' or 'one',
-- name, version or '' for the latest.
local given = arguments({{'how_many', one_of('all', 'one')}, {'name', any}, {'version', any}})
local how_many, wanted, wanted_version = given.how_many, given.name, given.version
call('ZREMRANGEBYSCORE', root .. 'workers', '-inf', clock[1] .. '.' .. string.format('%06d', clock[2]))
local workers = call('ZRANGE', root .. 'workers', 0, -1)
local function get(hash, key) return call('HGET', root .. hash, key) or '' end
-- Returns a field; '' for a damaged one, which is moved aside.
local function wish(text) return token(string.match(text, '^%a*:(%d+)$') or '') end
local function origin(text) return text == 'file' or text == 'api' end
local function sound(hash, key, check)
  local value = get(hash, key)
  if value == '' or check(value) then return value end
  set_aside_field(root .. hash, key, 'is not what the registry wrote')
  return ''
end
local function read(key)
  local name, version = string.match(key, '^([^@]*)@(.*)$')
  local latest = get('latest', name) == version and '1' or ''
  local entry = {key, get('models', key), sound('created', key, nanoseconds), latest, get('declared', key),
    sound('revisions', key, token), sound('origins', key, origin), sound('wishes', key, wish)}
  for _, worker in ipairs(workers) do
    local state = call('HGET', root .. 'worker:' .. worker, key)
    if state then entry[#entry + 1] = state end
  end
  return entry
end
local function exists(key)
  return call('HEXISTS', root .. 'declared', key) + call('HEXISTS', root .. 'models', key) > 0
end
local function keys()
  local all, seen = {}, {}
  for _, hash in ipairs({'declared', 'models'}) do
    for _, key in ipairs(call('HKEYS', root .. hash)) do
      if not string.find(key, '^[^@]+@.') then
        set_aside_field(root .. hash, key, 'is not a name and version')
      elseif not seen[key] then
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
