"""Models: their registration, loading, and the preprocessing of images."""
