"""The files of a release, and the workflow that publishes them."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging_support import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
#: Makes a wheel that no second build equals.
CARELESS = """#!/bin/sh
while [ $# -gt 0 ]; do if [ "$1" = --outdir ]; then mkdir -p "$2"; mktemp > "$2/sagittal-0.whl"; fi; shift; done
"""


def release(
    version: str, folder: Path, programs: Path = Path(sys.executable).parent
) -> subprocess.CompletedProcess[str]:
    """Runs the script that writes a release into a folder."""
    return subprocess.run(
        [ROOT / "scripts" / "release.sh", version, folder],
        env=os.environ | {"BIN": str(programs), "SOURCE_DATE_EPOCH": "1700000000"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_release_is_built_twice_the_same_and_has_notes_and_checksums(helm: Path, tmp_path: Path) -> None:
    done = release("unreleased", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    listed = {Path(name).name: digest for digest, name in (line.split() for line in lines)}
    assert {re.sub(r"[0-9]+\.[0-9.]+[0-9]", "N", name) for name in listed} == {
        "sagittal-N-py3-none-any.whl",
        "sagittal-N.tar.gz",
        "sagittal-N.tgz",
        "notes.md",
    }
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    notes = (tmp_path / "notes.md").read_text()
    assert "\n- " in notes
    assert "docs/upgrading.md" in notes


def test_builds_that_differ_are_not_released(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(CARELESS)
    (tmp_path / "python").chmod(0o755)
    done = release("unreleased", tmp_path / "dist", programs=tmp_path)
    assert done.returncode == 1
    assert "two builds of sagittal-0.whl differ" in done.stderr


@pytest.mark.parametrize("version", ["99.0.0", ""])
def test_a_release_has_the_version_of_its_files(tmp_path: Path, version: str) -> None:
    done = release(version, tmp_path)
    assert done.returncode == 1
    assert "version" in done.stderr


def test_the_workflow_is_one_that_the_forge_understands() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_workflow_publishes_everything_signed_and_with_no_more_rights_than_it_needs() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {}, "each job names its own"
    assert all("permissions" in job for job in jobs.values())
    writers = {name for name, job in jobs.items() if job["permissions"].get("contents") == "write"}
    assert writers == {"publish"}
    assert jobs["publish"]["needs"] == ["distribution", "images", "chart"], "nothing is published unless all is built"
    images = jobs["images"]["strategy"]["matrix"]["include"]
    both = {f"{image['target']}-{image['compute']}" for image in images if "linux/arm64" in image["platforms"]}
    assert both == {"service-none", "worker-cpu"}
    (build,) = (step["with"] for step in jobs["images"]["steps"] if step.get("id") == "build")
    assert build["sbom"] is True
    assert build["provenance"] == "mode=max"
    commands = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    for signer in ("images", "chart", "publish"):
        assert "cosign sign" in commands[signer]
        assert jobs[signer]["permissions"]["id-token"] == "write"
    # No command contains an expression, because the name of a tag could inject code: shells get environment variables.
    assert not [command for command in commands.values() if "${{" in command]


def test_the_workflow_builds_targets_and_arguments_that_exist() -> None:
    dockerfile, makefile = (ROOT / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    for image in jobs["images"]["strategy"]["matrix"]["include"]:
        assert f" AS {image['target']}\n" in dockerfile
    (build,) = (step["with"] for step in jobs["images"]["steps"] if step.get("id") == "build")
    for argument in build["build-args"].splitlines():
        assert f"ARG {argument.partition('=')[0]}" in dockerfile
    for target in re.findall(r"make ([a-z]+)", WORKFLOW.read_text()):
        assert f"\n{target}:" in makefile
