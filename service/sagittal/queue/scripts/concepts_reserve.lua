-- Reserves files before they are written: the seconds within which they must become part of a set, and their names.
-- They are deleted after that.
local given = arguments({named('seconds', SECONDS)}, {named('file', NAME)})
for _, file in ipairs(given.rest) do
  call('SREM', root .. 'concept_trash', file) -- a deleted set may be restored
  call('ZADD', root .. 'concept_files', exact(now + given.seconds), file)
end
return 'ok'
