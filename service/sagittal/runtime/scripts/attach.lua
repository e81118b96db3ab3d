-- Stores a large part of a job that is still to be submitted. Returns 'stored' or 'full'.
local id, name, part, bound = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if call('HEXISTS', parts_key(id), name) == 0 and call('EXISTS', job_key(id)) == 0 then
  if not make_room(#part, bound) then return 'full' end
  call('HSET', parts_key(id), name, part)
  call('HINCRBY', parts_key(id), '', #part)
  count_bytes(#part)
  call('ZADD', root .. 'attaching', exact(now), id)
end
return 'stored'
