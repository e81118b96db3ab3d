"""What only CPUs need: `cpu_changes` puts the layers of `kernels` into a model's graph.

The rest of the engine calls `cpu_changes` and nothing else of this package; programs call `memory.keep_freed_memory`.
"""

from sagittal.engine.cpu.rewriting import cpu_changes

__all__ = ["cpu_changes"]
