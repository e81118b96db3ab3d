"""Measures of explanations: insertion and deletion, pointing game, sanity checks, statistics."""
