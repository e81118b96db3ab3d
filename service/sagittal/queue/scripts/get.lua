-- Returns the view of a job, or false.
return view(arguments({ANY_ID}).job_id)
