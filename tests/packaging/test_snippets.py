"""The Python of the first pages runs as it is printed, and type-checks under `mypy --strict`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging_support import ROOT
from scripted_service import Script, served

PAGES = ("README.md", "docs/quickstart.md", "docs/library.md")
#: Programs import torch and explain with whole networks, and mypy reads all of torch.
pytestmark = pytest.mark.timeout(600)

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def program(page: str) -> str:
    """Returns the blocks of a page as one program, in their order."""
    return "\n\n".join(BLOCK.findall((ROOT / page).read_text()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory that looks like a checkout."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run(page: str, directory: Path) -> None:
    with served(Script()) as address:
        code = program(page).replace("localhost:50051", address)
        # the same calls on a network of random weights, which are not downloaded, a small image, and short descents
        code = re.sub(r"weights=(weights|\"IMAGENET1K_V1\")", "weights=None", code)
        code = code.replace("weights.transforms()", "weights.transforms(crop_size=64, resize_size=64)")
        code = code.replace("IGOSPlusPlus()", "IGOSPlusPlus(iterations=2, levels=0)").replace("=400", "=60")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=directory, check=False, capture_output=True, text=True, timeout=500
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_snippets_type_check(tmp_path: Path) -> None:
    files = []
    for page in PAGES:
        file = tmp_path / f"{Path(page).stem.replace('-', '_').lower()}.py"
        file.write_text(program(page))
        files.append(file)
    flags = [
        "--strict",
        "--explicit-package-bases",
        "--namespace-packages",
        "--config-file=",
        "--follow-imports=silent",
    ]
    flags.append("--disable-error-code=import-untyped")  # torchvision has no type hints
    sources = ":".join(str(ROOT / part) for part in ("protos", "service", "workers", "clients"))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *flags, *map(str, files)],
        cwd=ROOT, env={"MYPYPATH": sources, "PATH": "/usr/bin:/bin"}, check=False, capture_output=True, text=True,
        timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
