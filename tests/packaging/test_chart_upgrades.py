"""What an upgrade of the chart changes, and what it leaves alone."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging_support import CHART

CI = sorted(path.name for path in (CHART / "ci").iterdir())
WORKLOADS = {"Deployment", "StatefulSet"}


def workloads(helm: Path, chart: Path, values: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the specs of the workloads of a chart, with images that do not follow its version."""
    pinned = ["--set", "service.image.tag=v1", "--set", "workerDefaults.image.tag=v1"]
    command = [helm, "template", "rel", chart, "--namespace", "ns", "--values", CHART / "ci" / values, *pinned]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return {document["metadata"]["name"]: document["spec"] for document in documents if document["kind"] in WORKLOADS}


@pytest.mark.parametrize("values", CI)
def test_a_release_of_the_chart_that_changes_nothing_restarts_no_pod(helm: Path, tmp_path: Path, values: str) -> None:
    newer = tmp_path / "sagittal"
    shutil.copytree(CHART, newer)
    described = yaml.safe_load((newer / "Chart.yaml").read_text())
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**described, "version": "9.8.7", "appVersion": "6.5.4"}))
    before, after = workloads(helm, CHART, values), workloads(helm, newer, values)
    assert before == after, "templates of pods and of volumes, selectors and all"
    for spec in after.values():
        assert "9.8.7" not in yaml.safe_dump(spec)
