"""Where what the packaging tests look at is, and what they do where a tool is missing."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "sagittal"


def load_script(name: str) -> ModuleType:
    """Imports a program of scripts/, which are no package."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def missing(what: str) -> None:
    """Skips on a laptop; fails in CI, where everything must be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
