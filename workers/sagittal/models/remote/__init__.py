"""Remote models: called in the Open Inference Protocol v2, over gRPC or HTTP."""
