-- Returns the view of a job, or false.
return view(ARGV[1])
