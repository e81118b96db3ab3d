-- Returns {name, canary, ...}: the canary of each model that has one, as JSON.
arguments({})
return call('HGETALL', root .. 'canaries')
