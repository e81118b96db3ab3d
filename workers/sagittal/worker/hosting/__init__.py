"""Hosting of models on a worker: the states of a model, and the transitions between them."""
