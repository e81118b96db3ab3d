"""Sets of patches: minimal sufficient explanations, structured attention graphs, and scores of regions."""
