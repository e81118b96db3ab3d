"""How a model runs on CUDA: reduced precision, composition in one kernel, captured graphs, copies on their own stream.

`acceleration.accelerate` chooses at load, and is called for models on CUDA only. The parts that need no card are tested
on CPUs; `tests/cuda` needs one.
"""
