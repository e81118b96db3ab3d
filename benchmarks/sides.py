"""An optimised model against the original, each in a separate process, alternately.

The optimised side is a worker's: its optimisation steps at load, and freed memory that is kept. The plain side is the
model of its source without changes.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bare import Bare, clock_of
from side_processes import ask, read

from sagittal.engine.cpu.memory import keep_freed_memory
from sagittal.engine.optimise import optimise
from sagittal.engine.timing import Variant
from sagittal.models.sources import load_source

IMAGES = 16
"""Images in a batch, as a worker finds them best on a CPU."""

ROUNDS = 5
"""Runs of each side, in turn."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Speed-up of the optimised side, and the steps applied to the model."""

    forward: float
    backward: float
    """Forward and backward together."""
    kept: tuple[str, ...]
    largest_difference: float
    """Of a probability, from the plain model on noise."""


def compare(source: Mapping[str, Any]) -> Compared:
    """Runs both sides in turn."""
    sides = {name: _start(name, source) for name in ("plain", "optimised")}
    said = {name: read(side) for name, side in sides.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for mode in ("forward", "backward"):
            for name, side in sides.items():
                times.setdefault((name, mode), []).append(ask(side, mode)["seconds"])
    for side in sides.values():
        side.communicate("")
    forward, backward = (_ratio(times["plain", mode], times["optimised", mode]) for mode in ("forward", "backward"))
    return Compared(forward, backward, tuple(said["optimised"]["kept"]), said["optimised"]["largest_difference"])


def _ratio(plain: Sequence[float], optimised: Sequence[float]) -> float:
    """Returns the median ratio of consecutive runs: on a shared machine, the speed varies between minutes."""
    return statistics.median(one / other for one, other in zip(plain, optimised, strict=True))


def _start(side: str, source: Mapping[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, side, json.dumps(source)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(side: str, source: Mapping[str, Any]) -> None:
    """One side: reports the steps applied to the model, then times the requested passes."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if side == "optimised":
        keep_freed_memory()
    module = load_source(source).module.eval().requires_grad_(False).to(device)
    probe = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    variant, said = Variant(module), {"kept": [], "largest_difference": 0.0}
    if side == "optimised":
        fast, channels_last, steps = optimise(module, probe, lambda outputs: outputs.softmax(-1))
        variant, applied = Variant(fast, channels_last=channels_last), [step for step in steps if step.applied]
        said["kept"] = [step.name for step in applied]
        said["largest_difference"] = max((step.largest_difference for step in applied), default=0.0)
    print(json.dumps(said), flush=True)
    bare = Bare(variant, probe[:1], clock_of(device))
    for mode in sys.stdin:
        seconds = bare.seconds(IMAGES, gradient=mode.strip() == "backward")
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["plain", "optimised"])
    parser.add_argument("source", type=json.loads)
    options = parser.parse_args()
    serve(options.side, options.source)
