"""Jobs, methods, images and errors: what service and workers agree on. Knows neither torch, Redis nor a server."""
