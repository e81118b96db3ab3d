"""Models that run elsewhere: asked over gRPC in the Open Inference Protocol v2."""
