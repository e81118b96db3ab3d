"""Sets of patches: minimal sufficient explanations, attention graphs, and scores of regions."""
