-- Checks all arguments of a script before the script reads or writes anything. A wrong one raises the error
-- `ARGUMENT name is value; give EXPECTED`, and leaves the keys unchanged.

local root = KEYS[1]

-- Largest integer that is exact both as a Lua number and as a counter of Redis.
local MOST = 9007199254740992
-- Limit for the model evaluations of one job: 9,000 such jobs still fit into a counter.
local MOST_EVALUATIONS = 1e12
-- Limit for durations and times, in seconds.
local MOST_SECONDS = 1e12

local function refuse(name, value, wanted)
  local shown = #value > 40 and string.sub(value, 1, 40) .. '...' or value
  shown = string.gsub(shown, '[^%w%p ]', '?')
  error({err = string.format('ARGUMENT %s is "%s"; give %s', name, shown, wanted)})
end

-- Returns the number for a decimal text; nil for 'inf', 'nan', '0x10', ' 1' and the like.
local function decimal(text)
  if not string.find(text, '^%-?[%d.]+$') and not string.find(text, '^%-?[%d.]+[eE][+-]?%d+$') then return nil end
  local number = tonumber(text)
  if number and number == number and math.abs(number) < math.huge then return number + 0 end -- never -0
end

-- A kind of argument is a function that returns the parsed value, or nil for a wrong text, and a description of valid
-- ones.
local function number(low, high)
  return function(text)
    local found = decimal(text)
    return found and found >= low and found <= high and found or nil
  end, string.format('a number from %.17g to %.17g', low, high)
end

local function integer(low, high)
  return function(text)
    local found = string.find(text, '^%-?%d+$') and decimal(text)
    return found and found >= low and found <= high and found or nil
  end, string.format('an integer from %.17g to %.17g', low, high)
end

local function one_of(...)
  local admitted, names = {}, {...}
  for _, name in ipairs(names) do admitted[name] = true end
  return function(text) return admitted[text] and text or nil end, 'one of "' .. table.concat(names, '", "') .. '"'
end

local function any(text) return text end
local function some(text) return text ~= '' and text or nil end
-- Identifiers appear in comma-separated lists and in keys.
local function identifier(text) return string.find(text, '^[%w_.-]+$') and #text <= 128 and text or nil end
-- Fencing tokens are compared as texts.
local function token(text) return string.find(text, '^%d+$') and #text <= 16 and text or nil end
local function revision_or_nothing(text) return (text == '' or token(text)) and text or nil end
local function nanoseconds(text) return string.find(text, '^%d+$') and #text <= 19 and text or nil end
local function seconds_or_nothing(text)
  if text == '' then return text end
  local found = decimal(text)
  return found and found >= 0 and found <= MOST_SECONDS and text or nil
end

local function check(name, value, read, wanted)
  local found = read(value)
  if found == nil then refuse(name, value, wanted or 'another value') end
  return found
end

-- Returns the arguments by name. Each element of `declared` is {name, parser, description}. `rest` declares a group
-- that repeats after them; the result's `rest` is the flat list of its values.
local function arguments(declared, rest)
  local found, last = {}, #ARGV
  local repeats = rest and last - #declared
  if last < #declared or (not rest and last > #declared) or (rest and repeats % #rest ~= 0) then
    refuse('the number of arguments', tostring(last), tostring(#declared) .. (rest and ' and whole groups' or ''))
  end
  for i, each in ipairs(declared) do found[each[1]] = check(each[1], ARGV[i], each[2], each[3]) end
  if rest then
    found.rest = {}
    for i = 1, repeats do
      local each = rest[(i - 1) % #rest + 1]
      found.rest[i] = check(each[1], ARGV[#declared + i], each[2], each[3])
    end
  end
  return found
end

-- Declarations that several scripts share.
local ID = {'job_id', identifier, 'letters, digits, "_", "." and "-", at most 128'}
local ANY_ID = {'job_id', any} -- from a caller; an invalid one is an unknown job
local TOKEN = {'token', token, 'at most 16 digits'}
local SECONDS = {number(0, MOST_SECONDS)}
local COUNT = {integer(1, MOST)}
local SIZE = {integer(0, MOST)}
local NANOSECONDS = {nanoseconds, 'nanoseconds since the epoch'}
local NAME = {some, 'a text that is not empty'}
local function named(name, kind) return {name, kind[1], kind[2]} end
