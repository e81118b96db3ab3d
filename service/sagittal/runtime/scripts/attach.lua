-- Stores a large part of a job that is still to be submitted. Returns 'stored' or 'full'.
local given = arguments({ID, named('name', NAME), {'part', any}, named('max_stored_bytes', SIZE)})
local id, name, part, bound = given.job_id, given.name, given.part, given.max_stored_bytes
if call('HEXISTS', parts_key(id), name) == 0 and call('EXISTS', job_key(id)) == 0 then
  if not make_room(#part, bound) then return 'full' end
  call('HSET', parts_key(id), name, part)
  call('HINCRBY', parts_key(id), '', #part)
  count_bytes(#part)
  call('ZADD', root .. 'attaching', exact(now), id)
end
return 'stored'
