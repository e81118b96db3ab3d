-- Deletes an ended job with its events, and its images unless another job shares them. Returns 'ok', 'unknown' or the
-- job's state. The nonce makes a repeated call of the same deletion succeed.
local given = arguments({ANY_ID, named('nonce', NAME)})
local id, nonce = given.job_id, given.nonce
local mark = root .. 'deleted:' .. id
local job = read_job(id)
if not job then return call('GET', mark) == nonce and 'ok' or 'unknown' end
if job.state == '' then return view(id)[3] end
drop_job(id)
local run = read_run(job.run)
local others = {}
for _, sub in ipairs(split(run.subs)) do if sub ~= id then others[#others + 1] = sub end end
if run.state ~= '' and #others > 0 then
  call('HSET', run_key(job.run), 'subs', table.concat(others, ','))
elseif job.run ~= '' then
  drop_run(job.run)
end
call('SET', mark, nonce, 'EX', 60)
return 'ok'
