-- Requests that workers load or unload a model: name, version or '' for the latest, 'load' or 'unload'. Returns the
-- version, or '' if the model does not exist. Each wish has a number, by which workers distinguish it from the previous
-- one.
local given = arguments({{'name', any}, {'version', any}, {'wish', one_of('load', 'unload')}})
local name, version = given.name, given.version
if version == '' then version = call('HGET', root .. 'latest', name) or '' end
local key = name .. '@' .. version
if call('HEXISTS', root .. 'declared', key) + call('HEXISTS', root .. 'models', key) == 0 then return '' end
local turn = call('INCR', root .. 'changes')
call('HSET', root .. 'wishes', key, given.wish .. ':' .. turn)
call('PUBLISH', root .. 'models', turn)
return version
