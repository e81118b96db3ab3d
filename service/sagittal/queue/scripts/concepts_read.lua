-- Returns {'found', document, revision, weights, examples, job} for a set, or {'unknown', names...} with up to 24 other
-- sets of the model.
local given = arguments({TENANT, {'model', any}, {'name', any}})
local set = pick(set_key(given.tenant, member_of(given)), {'document', 'revision', 'weights', 'examples', 'job'})
if set.revision ~= '' then
  call('ZADD', index_key(given.tenant), 0, member_of(given)) -- repairs a damaged index
  return {'found', set.document, set.revision, set.weights, set.examples, set.job}
end
local answer = {'unknown'}
if given.model == '' then return answer end
for _, member in ipairs(members(given.tenant, given.model, '', 24)) do
  answer[#answer + 1] = string.sub(member, #given.model + 2)
end
return answer
