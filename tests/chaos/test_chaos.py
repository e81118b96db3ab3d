"""Everything that can break is broken once under load, and every promise holds. `make chaos` does it for longer."""

import warnings

import pytest
from chaos.run import run


@pytest.mark.timeout(400)
def test_every_promise_holds_while_everything_breaks() -> None:
    figures, violations = run(seconds=25, most=60, seed=20)
    assert violations == []
    assert figures.completed > 0
    assert figures.attempts > figures.jobs - figures.cancelled - figures.completed
    if figures.without:
        warnings.warn(f"the network was not cut: {figures.without}", stacklevel=1)
