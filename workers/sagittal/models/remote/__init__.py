"""Remote models: called over gRPC in the Open Inference Protocol v2."""
