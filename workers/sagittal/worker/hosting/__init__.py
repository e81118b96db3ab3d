"""Models that come and go: the states that a model goes through on this worker, and what leads from one to another."""
