"""Helm, and the chart as each of its ci files makes it."""

import functools
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging_support import CHART, load_script, missing

Render = Callable[..., Sequence[Mapping[str, Any]]]


@pytest.fixture(scope="session")
def helm() -> Path:
    """The program helm."""
    script = load_script("helm")
    try:
        return Path(script.find_helm())
    except script.NoHelm as error:
        missing(str(error))
        raise


@pytest.fixture(scope="session")
def render(helm: Path) -> Render:
    """Renders the chart with a ci file and `--set` options; each combination once."""

    @functools.cache
    def rendered(values: str, *options: str) -> Sequence[Mapping[str, Any]]:
        command = [helm, "template", "rel", CHART, "--namespace", "ns", "--values", CHART / "ci" / values]
        for option in options:
            command += ["--set", option]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise ValueError(done.stderr)
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    return rendered


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus's own checker of rules."""
    found = shutil.which("promtool")
    if found is None:
        missing("promtool is not installed: apt-get install prometheus", package="prometheus")
    return str(found)
