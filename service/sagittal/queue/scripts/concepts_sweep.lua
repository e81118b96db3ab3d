-- Returns up to `limit` files that belong to no set and must be deleted; the named files were deleted since the last
-- call.
local given = arguments({named('limit', COUNT)}, {named('deleted', NAME)})
local files, trash = root .. 'concept_files', root .. 'concept_trash'
for _, file in ipairs(given.rest) do call('SREM', trash, file) end
for _, file in ipairs(call('ZRANGEBYSCORE', files, '-inf', exact(now), 'LIMIT', 0, math.min(given.limit, 1000))) do
  call('ZREM', files, file) -- no set can take it any more
  call('SADD', trash, file)
end
return call('SRANDMEMBER', trash, math.min(given.limit, 1000))
