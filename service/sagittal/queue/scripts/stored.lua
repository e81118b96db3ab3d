-- Returns the stored bytes of requests, images, events and uploads, as counted.
arguments({})
return stored_bytes()
