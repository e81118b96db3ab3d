"""The gRPC service: authenticates, validates, admits, queues and relays. It is stateless and does not import torch."""
