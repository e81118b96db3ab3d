-- Returns the costs of a method's settings on a model as a flat list: setting, cost.
local given = arguments({named('model', NAME), named('version', NAME), {'method', any}})
return call('HGETALL', root .. 'cost:' .. given.method .. ':' .. given.model .. '@' .. given.version)
