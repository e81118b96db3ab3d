"""The first inputs of each campaign of atheris over what callers and Redis send; `make fuzz` gives each twenty minutes.

Apart from the fuzzing of RPCs, so that the two run beside each other.
"""

import importlib.util
from pathlib import Path

import pytest
from packaging_support import missing

from fuzzing.campaign import COVERED, fuzz_covered

#: What makes the campaigns of the suite begin alike each time: `make fuzz` draws another for each.
SEED = 1

#: Inputs of each target, not a time, so that a busy machine tries no fewer; model files come from the operator.
INPUTS = {"images": 10_000, "jobs": 10_000, "entries": 1_000}
#: Time after which it is enough on any machine, in seconds.
SECONDS = 240


@pytest.mark.parametrize("target", COVERED)
def test_whatever_is_read_is_read_or_refused(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris is not installed: it is for Linux on x86-64")
    outcome = fuzz_covered(target, SECONDS, tmp_path, seed=SEED, inputs=INPUTS[target])
    assert not outcome.fault, outcome.fault
    assert outcome.inputs > 100
