"""The programs in examples/ run as they stand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripted_service import Script, served

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
PICTURE = EXAMPLES / "images" / "chelsea.png"


@pytest.fixture
def run():
    """Runs an example against the scripted service; returns what it prints."""
    with served(Script()) as address:

        def program(name: str, *arguments: Path) -> str:
            command = [sys.executable, EXAMPLES / name, *arguments]
            variables = {**os.environ, "SAGITTAL_ADDRESS": address}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield program


def test_a_folder_of_pictures_is_explained_over_one_call(run, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(PICTURE, folder)
    assert "chelsea.png: lamp, insertion 0.43" in run("pipeline.py", folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["chelsea.png.mask.npy"]


def test_an_explanation_is_shown_as_it_forms(run):
    told = run("streaming.py", PICTURE)
    assert "evaluations" in told
    assert "mask covers" in told
