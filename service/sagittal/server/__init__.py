"""The gRPC service: authenticates, validates, admits, enqueues and relays. It holds no state and has no torch."""
