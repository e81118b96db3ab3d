"""A campaign of fuzzing: for how long, with how many inputs, and what it found."""

import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: Targets that atheris fuzzes.
COVERED = ("images", "jobs", "entries")

#: Longest time that one input may take, in seconds.
PATIENCE = 20

#: Memory that a fuzzed process may take, in MiB: torch alone needs one GiB of it.
MEMORY_MIB = 3072


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a campaign did."""

    target: str
    seconds: float
    inputs: int
    edges: int
    """Edges of our code and Pillow's that were reached; 0 where it is not measured."""
    fault: str = ""
    """What the first input did that must not happen; empty where none did."""

    def __str__(self) -> str:
        """Says it in a line."""
        edges = f", {self.edges:,} edges reached" if self.edges else ""
        return f"{self.target}: {self.inputs:,} inputs in {self.seconds:.0f} s{edges}: {self.fault or 'nothing found'}"


def fuzz_covered(target: str, seconds: int, keep: Path | None = None, *, seed: int = 0, inputs: int = -1) -> Outcome:
    """Fuzzes one of `COVERED`; inputs that reached something new, and one that failed, stay in `keep`.

    It ends after so many `inputs`, if they are given, and after so many seconds. A `seed` makes it begin alike each
    time; 0 draws one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = keep or Path(scratch)
        corpus = place / target
        corpus.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={seconds}", f"-timeout={PATIENCE}", f"-rss_limit_mb={MEMORY_MIB}", f"-seed={seed}"]
        options += [f"-runs={inputs}", "-print_final_stats=1", f"-artifact_prefix={place}/{target}-", "-verbosity=1"]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fuzzing.covered", target, str(corpus), *options],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + 300,
            env={**os.environ, "PYTHONPATH": _path(), "PYTHONWARNINGS": "ignore"},
        )
        took = time.monotonic() - began
    text = done.stdout.decode(errors="replace")
    fault = "" if done.returncode == 0 else _fault(text)
    return Outcome(target=target, seconds=took, inputs=_executed(text), edges=_edges(text), fault=fault)


def _path() -> str:
    return os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def _fault(text: str) -> str:
    """Returns what was said of the input that failed; all that was said where nothing is known of an input."""
    _, found, rest = text.partition("=== Uncaught Python exception: ===")
    return rest.strip() if found else text[-6000:]


def _executed(text: str) -> int:
    found = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text) or re.findall(r"^#(\d+)", text, re.MULTILINE)
    return int(found[-1]) if found else 0


def _edges(text: str) -> int:
    found = re.findall(r"cov: (\d+)", text)
    return int(found[-1]) if found else 0
