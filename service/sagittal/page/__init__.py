"""The page and its gateway: the API for browsers, by Connect and gRPC-Web over HTTP, as a thin program of its own."""
