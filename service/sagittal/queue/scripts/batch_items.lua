-- Returns {cursor, key, letter, job, last event, ...}: items in states with one of these letters (all if none is given)
-- among about `limit`; the cursor is '0' at the end. Returns false if the batch does not exist.
local function letters(text) return string.find(text, '^[qcfx]*$') and text or nil end
local given = arguments({BATCH_TENANT, BATCH_NAME, named('cursor', SIZE), named('limit', COUNT),
  {'letters', letters, 'letters of states'}})
local tenant, name, wanted = given.tenant, given.name, given.letters
if not read_batch(tenant, name) then return false end
local items, failures = batch_key('batchitems', tenant, name), batch_key('batchfailures', tenant, name)
-- Failed and cancelled items are found among those whose event is kept, if all are kept: most items complete.
local batch = read_batch(tenant, name)
local failed = (stored(batch.failed) or 0) + (stored(batch.cancelled) or 0)
local few = wanted ~= '' and string.find(wanted, '^[fx]+$') and call('HLEN', failures) == failed
local page = call('HSCAN', few and failures or items, string.format('%.0f', given.cursor), 'COUNT', math.min(given.limit, 1000))
local answer = {page[1]}
for i = 1, #page[2], 2 do
  local key = page[2][i]
  local letter, id = read_item(tenant, name, key)
  if letter and (wanted == '' or string.find(wanted, letter, 1, true)) then
    local event = (letter == 'f' or letter == 'x') and call('HGET', failures, key) or ''
    for _, value in ipairs({key, letter, id, event}) do answer[#answer + 1] = value end
  end
end
return answer
