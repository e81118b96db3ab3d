"""The notebook in examples/ runs as it stands, on the shipped image, by the real model."""

import os
from pathlib import Path

import nbformat
import pytest
from e2e_stack import PATIENCE
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "explaining.ipynb"

pytestmark = pytest.mark.real_model


def outputs(notebook, kind: str) -> list[str]:
    """What the cells show in one format, in order."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return ["".join(each.data[kind]) for each in shown if kind in each.get("data", {})]


@pytest.fixture
def executed(real_stack, monkeypatch):
    """The notebook after a run of all its cells; `OUT` keeps it as a file."""
    monkeypatch.setenv("SAGITTAL_ADDRESS", real_stack.address)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = NotebookClient(
        notebook, timeout=int(PATIENCE), kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    runner.execute()
    if kept := os.environ.get("SAGITTAL_TEST_NOTEBOOK"):
        nbformat.write(notebook, kept)
    return notebook


def test_every_cell_runs_and_shows_what_it_says(executed) -> None:
    html = outputs(executed, "text/html")
    assert any("efficientnet-lite0" in each for each in html)
    live = next(each for each in html if "overlay" in each)
    assert "Egyptian cat" in live
    assert "insertion" in live
    assert any("sets checked" in each for each in html)
    assert outputs(executed, "image/png"), "the overlay and the figure"
    assert not [
        output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"
    ]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in nbformat.read(NOTEBOOK, 4).cells)
