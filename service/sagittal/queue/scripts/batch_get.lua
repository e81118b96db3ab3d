-- Returns the view of a batch, or false.
local given = arguments({BATCH_TENANT, {'name', any}})
return view_batch(given.tenant, given.name)
