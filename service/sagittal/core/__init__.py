"""The types that service and workers share: jobs, methods, images and errors. Imports neither torch, Redis nor gRPC."""
