"""Where what the packaging tests look at is, and what they do where a tool is missing."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "sagittal"


def load_script(name: str) -> ModuleType:
    """Imports a program of scripts/, which are no package."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def missing(what: str, package: str = "") -> None:
    """Skips on a laptop; fails in CI, where everything must be there that .ci/run installs."""
    expected = not package or package in (ROOT / ".ci" / "run").read_text()
    if os.environ.get("CI") == "true" and expected:
        pytest.fail(what)
    pytest.skip(what)


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Yields the title and the query of each target of the dashboard, as Grafana would ask it."""
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "5m")
            yield panel["title"], query.replace("$namespace", ".*").replace("$model", ".*")
