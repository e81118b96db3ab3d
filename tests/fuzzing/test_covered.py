"""Seconds of each campaign of atheris over what callers and Redis send; `make fuzz` gives each twenty minutes.

Apart from the fuzzing of RPCs, so that the two run beside each other.
"""

import importlib.util
from pathlib import Path

import pytest
from packaging_support import missing

from fuzzing.campaign import COVERED, fuzz_covered

#: What makes the campaigns of the suite begin alike each time: `make fuzz` draws another for each.
SEED = 1

#: Time for each target in seconds; model files come from the operator.
SECONDS = {"images": 20, "jobs": 20, "entries": 3}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", COVERED)
def test_whatever_is_read_is_read_or_refused(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        missing("atheris is not installed: it is for Linux on x86-64")
    outcome = fuzz_covered(target, SECONDS[target], tmp_path, seed=SEED)
    assert not outcome.fault, outcome.fault
    assert outcome.inputs > 100
