-- Shared by the queue's scripts, after common.lua. A batch is a named set of items; an item has a key and at most one
-- job. Keys:
--   batch:TENANT:NAME      hash: `spec`, `state`, `created`, `changed`, `expected`, and counts
--   batchitems:TENANT:NAME hash of items by key: the letter of the state, and the id of the job while it is kept
--   batchlive:TENANT:NAME  set of the keys of items in flight
--   batchfailures:TENANT:NAME  hash of the last events of items that failed or were cancelled
--   batches:TENANT         zset of names, all with score 0
--   batchchanges           zset of TENANT:NAME by the time of the last change
--   batchcount             hash of the numbers of `items:TENANT` and of kept `failures:TENANT`
local FLIGHT = 'q'
local LETTERS = {completed = 'c', failed = 'f', cancelled = 'x'}
local COUNTED = {q = 'inflight', c = 'completed', f = 'failed', x = 'cancelled'}

-- Failures of a tenant that are kept with their event, and bytes of such an event.
local MOST_FAILURES, MOST_FAILURE_BYTES = 50000, 4096

local BATCH_NAME = {'name', identifier, 'letters, digits, "_", "." and "-", at most 128'}
local function found_batch(text) return (text == '' or identifier(text)) and text or nil end
local BATCH_TENANT = named('tenant', NAME)

local function batch_key(kind, tenant, name) return root .. kind .. ':' .. tenant .. ':' .. name end

local BATCH = {'spec', 'state', 'created', 'changed', 'expected', 'inflight', 'completed', 'failed', 'cancelled', 'evaluations',
  'milliseconds', 'computed'}
local BATCH_STATES = {open = true, paused = true, cancelled = true}

local function fault_of_batch(batch)
  if batch.spec == '' then return 'spec is missing' end
  if not BATCH_STATES[batch.state] then return 'state is unknown' end
  return (not stored(batch.created) or not stored(batch.changed)) and 'its times are not numbers' or nil
end

local function count_item(tenant, name, letter, number)
  call('HINCRBY', batch_key('batch', tenant, name), COUNTED[letter], number)
  count('batchcount', 'items:' .. tenant, number)
end
local function counted(what, tenant) return stored(call('HGET', root .. 'batchcount', what .. ':' .. tenant)) or 0 end

-- Counts the items of a batch again, after damage.
local function recount(tenant, name)
  local counts, cursor = {q = 0, c = 0, f = 0, x = 0}, '0'
  repeat
    local page = call('HSCAN', batch_key('batchitems', tenant, name), cursor, 'COUNT', 1000)
    cursor = page[1]
    for i = 2, #page[2], 2 do
      local letter = string.sub(page[2][i], 1, 1)
      if counts[letter] then counts[letter] = counts[letter] + 1 end
    end
  until cursor == '0'
  for letter, number in pairs(counts) do call('HSET', batch_key('batch', tenant, name), COUNTED[letter], number) end
  note('batch:' .. tenant .. ':' .. name, 'had a wrong count')
end

local function drop_batch(tenant, name)
  local items, failures = batch_key('batchitems', tenant, name), batch_key('batchfailures', tenant, name)
  count('batchcount', 'items:' .. tenant, -call('HLEN', items))
  count('batchcount', 'failures:' .. tenant, -call('HLEN', failures))
  call('UNLINK', items, failures, batch_key('batch', tenant, name), batch_key('batchlive', tenant, name))
  call('ZREM', root .. 'batches:' .. tenant, name)
  call('ZREM', root .. 'batchchanges', tenant .. ':' .. name)
end

-- Returns a batch; nil if it does not exist. A damaged one is moved aside, and its items are forgotten.
local function read_batch(tenant, name)
  local key = batch_key('batch', tenant, name)
  local batch = pick(key, BATCH)
  local fault = fault_of_batch(batch)
  if not fault then
    local items = 0
    for _, field in pairs(COUNTED) do items = items + (stored(batch[field] ~= '' and batch[field] or '0') or -MOST) end
    if items ~= call('HLEN', batch_key('batchitems', tenant, name)) then
      recount(tenant, name)
      batch = pick(key, BATCH)
    end
    return batch
  end
  if call('EXISTS', key) == 0 then return nil end
  set_aside(key, fault)
  drop_batch(tenant, name)
  return nil
end

-- Returns the fields of a batch in the order that `queue.batches.parse_batch` expects, or false.
local function view_batch(tenant, name)
  local batch = read_batch(tenant, name)
  if not batch then return false end
  local answer = {name}
  for i, field in ipairs(BATCH) do answer[i + 1] = i > 4 and not stored(batch[field]) and '0' or batch[field] end
  return answer
end

local function touch_batch(tenant, name)
  call('HSET', batch_key('batch', tenant, name), 'changed', exact(now))
  call('ZADD', root .. 'batchchanges', exact(now), tenant .. ':' .. name)
end

-- Returns the letter of an item's state and the id of its job; nil if the item is unknown.
local function read_item(tenant, name, key)
  local value = call('HGET', batch_key('batchitems', tenant, name), key)
  local letter = value and string.sub(value, 1, 1)
  if letter and COUNTED[letter] then return letter, string.sub(value, 2) end
end

local function write_item(tenant, name, key, letter, id)
  local before = read_item(tenant, name, key)
  if before then count_item(tenant, name, before, -1) end
  call('HSET', batch_key('batchitems', tenant, name), key, letter .. id)
  count_item(tenant, name, letter, 1)
  call(letter == FLIGHT and 'SADD' or 'SREM', batch_key('batchlive', tenant, name), key)
  touch_batch(tenant, name)
end

local function keep_failure(tenant, name, key, event)
  if #event > MOST_FAILURE_BYTES or counted('failures', tenant) >= MOST_FAILURES then return end
  count('batchcount', 'failures:' .. tenant, call('HSET', batch_key('batchfailures', tenant, name), key, event))
end
local function drop_failure(tenant, name, key)
  count('batchcount', 'failures:' .. tenant, -call('HDEL', batch_key('batchfailures', tenant, name), key))
end

local function forget_item(tenant, name, key)
  local letter = read_item(tenant, name, key)
  if not letter then return end
  count_item(tenant, name, letter, -1)
  call('HDEL', batch_key('batchitems', tenant, name), key)
  drop_failure(tenant, name, key)
  call('SREM', batch_key('batchlive', tenant, name), key)
end

-- Records that the job of an item has ended, once. `spent` is its cost, if it was computed for this job.
function end_item(id, job, state, element, spent)
  if job.batch == '' or call('EXISTS', batch_key('batch', job.tenant, job.batch)) == 0 then return end
  local letter, its_job = read_item(job.tenant, job.batch, job.item)
  if letter ~= FLIGHT or its_job ~= id then return end
  write_item(job.tenant, job.batch, job.item, LETTERS[state], id)
  if state ~= 'completed' and element then keep_failure(job.tenant, job.batch, job.item, string.sub(element, 2)) end
  if not spent or spent.evaluations == 0 then return end
  local key = batch_key('batch', job.tenant, job.batch)
  call('HINCRBY', key, 'computed', 1)
  call('HINCRBY', key, 'evaluations', string.format('%.0f', spent.evaluations))
  call('HINCRBY', key, 'milliseconds', string.format('%.0f', spent.seconds * 1000))
end

-- Forgets the id of an item's job that is deleted.
function forget_job_of_item(id, job)
  if job.batch == '' then return end
  if LETTERS[job.state] then end_item(id, job, job.state) end -- ended by a release that knew no batches
  local letter, its_job = read_item(job.tenant, job.batch, job.item)
  if letter and its_job == id then call('HSET', batch_key('batchitems', job.tenant, job.batch), job.item, letter) end
end
