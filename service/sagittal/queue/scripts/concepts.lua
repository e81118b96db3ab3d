-- Shared by the scripts of concept sets, after arguments.lua, quarantine.lua and common.lua. Keys:
--   concept:TENANT:MODEL/NAME   hash of a set: its `document`, `revision`, the names of its files (`weights` and
-- `examples`),
--                               the `bytes` of files and document, and the `job` that fitted it
--   concepts:TENANT    zset of MODEL/NAME, all with score 0
--   concept_bytes      hash of bytes by tenant
--   concept_revision   string: counts all changes of sets
--   concept_trash      set of files to delete
--   concept_files      zset of files that belong to no set yet, by the time until which they are kept

local TENANT, MODEL, SET_NAME = named('tenant', NAME), named('model', NAME), named('name', NAME)
local MOST_BYTES = named('max_tenant_bytes', SIZE)
local REVISION = {'revision', token, 'at most 16 digits'}

local function member_of(given) return given.model .. '/' .. given.name end
local function set_key(tenant, member) return root .. 'concept:' .. tenant .. ':' .. member end
local function index_key(tenant) return root .. 'concepts:' .. tenant end

-- Returns a set without its document; nil if it does not exist.
local function read_set(tenant, member)
  local set = pick(set_key(tenant, member), {'revision', 'weights', 'examples', 'bytes', 'job'})
  if set.revision ~= '' then return set end
end

-- Returns the answer {'full', bytes} if a tenant's sets would exceed their limit, else nil.
local function too_much(tenant, more, most)
  local bytes = (stored(call('HGET', root .. 'concept_bytes', tenant)) or 0) + more
  if more > 0 and bytes > most then return {'full', string.format('%.0f', bytes)} end
end

local function delete_later(set)
  for _, name in ipairs({'weights', 'examples'}) do
    if set[name] ~= '' then call('SADD', root .. 'concept_trash', set[name]) end
  end
end

local function drop_set(tenant, member, set)
  call('DEL', set_key(tenant, member))
  call('ZREM', index_key(tenant), member)
  count('concept_bytes', tenant, -(stored(set.bytes) or 0))
end

-- Returns up to `most` keys MODEL/NAME of a model's sets after `after`; an empty model means all models.
local function members(tenant, model, after, most)
  local first, last = model == '' and '-' or '[' .. model .. '/', model == '' and '+' or '(' .. model .. '0'
  if after ~= '' and (first == '-' or after >= model .. '/') then first = '(' .. after end
  return call('ZRANGEBYLEX', index_key(tenant), first, last, 'LIMIT', 0, most)
end
