-- Returns a number that increases with each change of a declaration or a wish. After damage it restarts at 0, and
-- workers then declare their models again.
arguments({})
local changes = call('GET', root .. 'changes') or '0'
if token(changes) then return changes end
set_aside(root .. 'changes', 'is not a number')
return '0'
