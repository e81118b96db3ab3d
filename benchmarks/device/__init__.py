"""Measurements on a card, in minutes: `make device` runs them; on a CPU they run with `--device cpu --small`."""
