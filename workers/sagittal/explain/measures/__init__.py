"""How good an explanation is: insertion and deletion, pointing game, sanity checks, statistics."""
