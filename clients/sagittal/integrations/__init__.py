"""Stores explanations in experiment trackers (MLflow, Weights & Biases, FiftyOne) through their public APIs.

It imports only `sagittal.client` and `sagittal.imaging`. Each module imports its tracker on first use, and names the
extra to install if it is missing.
"""
