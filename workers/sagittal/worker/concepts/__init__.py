"""Concept sets at a worker: fitting them to images, storing them, and explaining by them."""
