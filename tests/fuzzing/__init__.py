"""Fuzzing: what must hold whatever the input is, one module for each kind of input.

`python -m fuzzing images --seconds 60` (with `tests` on the path) fuzzes one of them; see `__main__.py`.
"""
