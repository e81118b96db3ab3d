"""The program `sagittal-page`: serves the page, and the API for browsers by Connect and gRPC-Web over HTTP."""
