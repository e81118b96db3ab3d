-- Returns what settings of a method cost on a model, flat: setting, cost.
local given = arguments({named('model', NAME), named('version', NAME), {'method', any}})
return call('HGETALL', root .. 'cost:' .. given.method .. ':' .. given.model .. '@' .. given.version)
