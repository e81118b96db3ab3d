-- Moves a damaged record of a model version aside: hash, NAME@VERSION, reason.
local given = arguments({{'hash', one_of('declared', 'models', 'worker')}, {'model', any}, {'reason', any}})
local hashes = {root .. given.hash}
if given.hash == 'worker' then
  hashes = {}
  for _, worker in ipairs(call('ZRANGE', root .. 'workers', 0, -1)) do hashes[#hashes + 1] = root .. 'worker:' .. worker end
end
for _, hash in ipairs(hashes) do
  if call('HEXISTS', hash, given.model) == 1 then set_aside_field(hash, given.model, given.reason) end
end
call('DEL', root .. 'changes') -- so that workers declare and publish their models again
return 1
