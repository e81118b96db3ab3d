-- Returns the elements of a job's log from an offset to another, or false where there is no log.
local elements = call('LRANGE', log_key(ARGV[1]), ARGV[2], ARGV[3])
if #elements == 0 and call('EXISTS', log_key(ARGV[1])) == 0 then return false end
return elements
