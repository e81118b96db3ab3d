-- Returns a number that grows whenever a declaration or a wish changes; after damage it begins anew, upon which workers declare
-- their models again.
arguments({})
local changes = call('GET', root .. 'changes') or '0'
if token(changes) then return changes end
set_aside(root .. 'changes', 'is no number')
return '0'
