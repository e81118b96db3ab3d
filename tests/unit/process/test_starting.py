"""The first step of every program; tests/unit/cli/test_processes.py has what it prints if a package is missing."""

import gc
import os

import pytest

from sagittal.process.starting import keeping_imports, naming_extra


@pytest.mark.parametrize(("given", "effective"), [(None, "ERROR"), ("debug", "debug")])
def test_grpc_writes_errors_alone_unless_more_is_asked(monkeypatch, given, effective) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", given or "")
    if given is None:
        monkeypatch.delenv("GRPC_VERBOSITY")
    with naming_extra("sagittal", "cli"):
        assert os.environ["GRPC_VERBOSITY"] == effective


def test_imports_are_not_collected_and_later_garbage_is() -> None:
    try:
        with keeping_imports():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
