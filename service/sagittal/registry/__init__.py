"""The registry of models and concept sets on Redis."""
