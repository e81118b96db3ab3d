-- Returns a part that was attached to a job; nothing if it is deleted.
local given = arguments({ID, named('name', NAME)})
return call('HGET', parts_key(given.job_id), given.name)
