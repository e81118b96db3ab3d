"""Measurements on disk: one file for each image and setting, written when the measurement is done.

A stopped run resumes. The name of a file's folder depends on everything that determines its content: the method's
parameters, the seed, the model's digest and the source of the method, so that outdated results are never read.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2] / ".cache" / "quality"

Record = dict[str, Any]
"""Numbers, strings and arrays by name."""


def recorded(folder: Path, picture: str, measure: Callable[[], Mapping[str, Any]]) -> Record:
    """Returns the record of an image; measures and writes it first if there is none."""
    path = folder / f"{picture}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, **measure())
        part.replace(path)
    return read(path)


def read(path: Path) -> Record:
    """Returns the record of a file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] if file[name].ndim else file[name].item() for name in file.files}


def folder(label: str, settings: Mapping[str, Any], modules: tuple[str, ...]) -> Path:
    """Returns the folder of a setting.

    Args:
        label: Readable name of the setting.
        settings: All that the result depends on, as JSON can hold it.
        modules: Names of the modules whose source it depends on.
    """
    content = json.dumps(settings, sort_keys=True) + "".join(_source(name) for name in modules)
    return ROOT / f"{label}-{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"


def _source(module: str) -> str:
    """Returns a module's code without its comments and docstrings, so that rewording invalidates no measurement."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
