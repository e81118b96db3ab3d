-- Calls Redis for all scripts, and moves damaged records aside so that the rest continues to work. Keys:
--   quarantine:KEY   the damaged record, for a week
--   quarantine       zset of the newest 100 of these by time
--   quarantined      list of KIND, KEY and REASON, separated by zero bytes, for a sweep to report
--   audit            string: the next sweep must audit (audit.lua)
-- If a command finds a key of the wrong type, the key counts as damaged, and then as missing.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6

local KEPT_SECONDS, MOST_KEPT, MOST_UNREPORTED = 7 * 86400, 100, 1000

-- Calls a command on a key of the quarantine itself; a key of the wrong type is deleted first.
local function keep(command, key, ...)
  local reply = redis.pcall(command, root .. key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  redis.call('UNLINK', root .. key)
  return redis.call(command, root .. key, ...)
end

-- Makes the next sweep recount and reindex everything.
local function want_audit() redis.call('SET', root .. 'audit', 1) end

-- Records that something was damaged; `key` is without the root.
local function note(key, reason)
  local kind = string.match(key, '^[^:]*')
  keep('RPUSH', 'quarantined', table.concat({kind, key, reason}, '\0'))
  keep('LTRIM', 'quarantined', -MOST_UNREPORTED, -1)
  want_audit()
end

local function keep_aside(aside)
  redis.call('EXPIRE', aside, KEPT_SECONDS)
  keep('ZADD', 'quarantine', now, aside)
  for _, oldest in ipairs(keep('ZRANGE', 'quarantine', 0, -MOST_KEPT - 1)) do
    redis.call('UNLINK', oldest)
    keep('ZREM', 'quarantine', oldest)
  end
end

local function set_aside(key, reason)
  local name = string.sub(key, #root + 1)
  local aside = root .. 'quarantine:' .. name
  local moved = redis.pcall('RENAME', key, aside)
  if moved.err then redis.call('UNLINK', key) else keep_aside(aside) end -- an ACL of an older release may not allow RENAME
  note(name, reason)
end

local function set_aside_field(key, field, reason)
  local name = string.sub(key, #root + 1) .. ':' .. field
  local aside = root .. 'quarantine:' .. name
  redis.call('SET', aside, redis.call('HGET', key, field) or '')
  keep_aside(aside)
  redis.call('HDEL', key, field)
  note(name, reason)
end

local COUNTS = {INCR = true, INCRBY = true, HINCRBY = true}

local function call(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then
    set_aside(key, 'has another type than the queue wrote')
  elseif COUNTS[command] and (string.find(reply.err, 'integer') or string.find(reply.err, 'overflow')) then
    if command == 'HINCRBY' then
      set_aside_field(key, (...), 'is not an integer that can be incremented')
    else
      set_aside(key, 'is not an integer that can be incremented')
    end
  else
    error(reply)
  end
  return redis.call(command, key, ...)
end

-- Returns a stored number that is not negative; nil if the text is not such a number or is larger than the queue
-- counts.
local function stored(text)
  local number = text and decimal(text)
  return number and number >= 0 and number <= MOST and number or nil
end

-- Makes changes that neither the append-only file nor a replica gets: they are renewed before they expire, so that after
-- a restart or a failover they may be missing for a moment.
local function unlogged(change)
  redis.set_repl(redis.REPL_NONE)
  change()
  redis.set_repl(redis.REPL_ALL)
end
