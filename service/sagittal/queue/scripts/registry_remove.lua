-- Removes a model version: name, version. Returns 'done', 'unknown', or 'latest' if it is the latest of several.
local given = arguments({{'name', any}, {'version', any}})
local name, version = given.name, given.version
local key = name .. '@' .. version
if call('HEXISTS', root .. 'declared', key) + call('HEXISTS', root .. 'models', key) == 0 then
  return 'unknown'
end
local latest = call('HGET', root .. 'latest', name) == version
if latest then
  for _, hash in ipairs({'declared', 'models'}) do
    for _, other in ipairs(call('HKEYS', root .. hash)) do
      if other ~= key and string.sub(other, 1, #name + 1) == name .. '@' then return 'latest' end
    end
  end
  call('HDEL', root .. 'latest', name)
end
for _, hash in ipairs({'declared', 'models', 'revisions', 'origins', 'created', 'wishes'}) do
  call('HDEL', root .. hash, key)
end
call('ZREM', root .. 'served', key)
call('PUBLISH', root .. 'models', call('INCR', root .. 'changes'))
return 'done'
