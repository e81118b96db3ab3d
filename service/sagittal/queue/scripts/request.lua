-- Returns {request, name, image, ...} of a job's execution, {} if they are deleted, false if the job does not exist.
local job = read_job(arguments({ANY_ID}).job_id)
if not job then return false end
local run = fields(run_key(job.run))
if not run.request then return {} end
local answer = {run.request}
add_images(answer, run)
return answer
