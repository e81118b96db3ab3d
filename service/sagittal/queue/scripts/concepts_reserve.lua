-- Lets files be written that no set has yet: the seconds in which they must become those of a set, and their names. Later
-- they are deleted.
local given = arguments({named('seconds', SECONDS)}, {named('file', NAME)})
for _, file in ipairs(given.rest) do call('ZADD', root .. 'concept_files', exact(now + given.seconds), file) end
return 'ok'
