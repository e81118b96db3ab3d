"""Explanations in experiment trackers (MLflow, Weights & Biases, FiftyOne), and in engines for many rows (Ray, Spark).

It imports only `sagittal.client`, `sagittal.imaging` and, for engines, `sagittal.bulk`. Each module imports its package
on first use, and names the extra to install if it is missing.
"""
