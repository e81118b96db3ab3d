-- Returns {cursor, job, ...}: ids of jobs of items in flight; the cursor is '0' at the end.
local given = arguments({BATCH_TENANT, BATCH_NAME, named('cursor', SIZE), named('limit', COUNT)})
local tenant, name = given.tenant, given.name
local page = call('SSCAN', batch_key('batchlive', tenant, name), exact(given.cursor), 'COUNT', math.min(given.limit, 1000))
local answer = {page[1]}
for _, key in ipairs(page[2]) do
  local letter, id = read_item(tenant, name, key)
  if letter == FLIGHT then
    local job = read_job(id)
    if not job then forget_item(tenant, name, key) -- Redis lost it
    elseif job.state ~= '' then end_item(id, job, job.state)
    else answer[#answer + 1] = id end
  end
end
return answer
