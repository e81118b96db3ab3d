-- Returns {request, name, image, ...} of a job's run, {} where they are gone, false where there is no such job.
local job = pick(job_key(arguments({ANY_ID}).job_id), {'run', 'kind'})
if job.kind == '' then return false end
local run = fields(run_key(job.run))
if not run.request then return {} end
local answer = {run.request}
add_images(answer, run)
return answer
