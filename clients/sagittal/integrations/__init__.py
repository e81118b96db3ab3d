"""Where experiments are kept: explanations in MLflow, Weights & Biases and FiftyOne, over their public APIs.

It knows `sagittal.client` only. Each module imports its package when it is used, and names the extra that brings it.
"""
