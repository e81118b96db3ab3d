"""The summary page of a batch."""

from types import SimpleNamespace

import pytest

from sagittal.bulk import OutputError
from sagittal.bulk.runs import Plan
from sagittal.bulk.summary import _facts, write_summary


def test_options_are_shown_as_a_person_writes_them() -> None:
    options = {"model": "m", "method": {"name": "igos++", "iterations": "4"}, "seed": 0, "max_evaluations": 0}
    table = _facts(SimpleNamespace(manifest="images", options=options), None, 12)  # type: ignore[arg-type]
    assert "igos++, iterations 4" in table
    assert "seed" in table
    assert "evaluations" not in table, "0 is no limit"


def test_the_summary_of_a_deleted_directory_names_it(tmp_path) -> None:
    with pytest.raises(OutputError, match="gone was deleted while its batch was running"):
        write_summary(tmp_path / "gone", Plan(name="b", manifest="images"), None)
