"""Concept sets on a worker: fitting, storage, and explanations by them."""
