"""Optimisations for CPUs: `cpu_changes` replaces layers of a model's graph by those of `kernels`.

The rest of the engine uses only `cpu_changes` of this package; programs call `memory.keep_freed_memory`.
"""

from sagittal.engine.cpu.rewriting import cpu_changes

__all__ = ["cpu_changes"]
