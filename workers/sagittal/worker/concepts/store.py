"""Where concept sets are kept: safetensors files in a directory that the workers share.

A file carries the network's weights, the description as a `sagittal.v1.ConceptSet`, and in its metadata what it is of.
Nothing in it is code. Files are replaced as a whole, so that a reader sees the old one or the new one, and changes are
made under a lock. Each tenant has a directory of its own: examples show the images that it sent.
"""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import torch
from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sagittal.core.errors import AlreadyExists, FailedPrecondition, InvalidRequest, NotFound
from sagittal.explain.concepts import SRAE
from sagittal.v1 import concept_pb2

log = structlog.get_logger(__name__)

#: What a name may be: it is a file's name too.
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")

_SUFFIX = ".safetensors"
_DESCRIPTION = "description"
_WEIGHTS = "srae."
_FORMAT = "sagittal concept set 1"


class ConceptSettings(BaseModel):
    """Where concept sets are kept, and what they may be fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    directory: Path | None = None
    """Directory of the concept sets, which all workers share and can write. Not set: no set can be fitted or read."""
    datasets: dict[str, Path] = {}
    """Directories of pictures that sets may be fitted to, by name, as JSON. Any caller may name them, and sees the
    pictures that excite a concept."""
    max_feature_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024 * 1024
    """Bytes of extracted features that are kept in the directory; the oldest go first. 0 keeps none."""


class ConceptStore:
    """The concept sets under a directory; None where none is configured."""

    def __init__(self, directory: Path | None) -> None:
        self._root = directory

    def check_free(self, tenant: str, model: str, name: str, *, replace: bool) -> None:
        """Raises where a set could not be stored: no directory, a bad name, or one that is taken."""
        path = self._path(tenant, model, name)
        if path.exists() and not replace:
            text = f"{model} has a concept set {name!r} already: choose another name, or set `replace`"
            raise AlreadyExists(text, field="settings.name")

    def save(self, tenant: str, description: concept_pb2.ConceptSet, srae: SRAE) -> None:
        """Stores a set, in place of one of the same name."""
        with self._locked(tenant, description.model):
            path = self._path(tenant, description.model, description.name)
            _write(path, description, {_WEIGHTS + name: tensor for name, tensor in srae.state_dict().items()})
        log.info("concept-set-stored", model=description.model, concept_set=description.name, tenant=tenant)

    def describe(self, tenant: str, model: str, name: str) -> concept_pb2.ConceptSet:
        """Returns a set's description. Raises NotFound, naming those that exist."""
        return self._read(self._existing(tenant, model, name))[0]

    def load(self, tenant: str, model: str, name: str, digest: str) -> tuple[concept_pb2.ConceptSet, SRAE]:
        """Returns a set and its network. Raises FailedPrecondition where it is of another model digest."""
        field = "spec.method.concepts.concept_set"
        description, tensors = self._read(self._existing(tenant, model, name, field=field))
        if description.model_digest != digest:
            text = (
                f"the concept set {name!r} was fitted on another {model} (digest {description.model_digest[:12]}) than "
                f"the one that is served (digest {digest[:12]}): fit it again"
            )
            raise FailedPrecondition(text, field=field)
        state = {key.removeprefix(_WEIGHTS): value for key, value in tensors.items() if key.startswith(_WEIGHTS)}
        return description, SRAE.of_state(state)

    def list(self, tenant: str, model: str) -> Sequence[concept_pb2.ConceptSet]:
        """Returns a tenant's sets by model and name, without examples; of one model, or of all for an empty one."""
        directory = self._directory(tenant, "")
        models = [model] if model else sorted(each.name for each in directory.glob("*") if each.is_dir())
        paths = [path for each in models for path in sorted((directory / each).glob(f"*{_SUFFIX}"))]
        found = [self._read(path)[0] for path in paths]
        for description in found:
            for concept in description.concepts:
                concept.ClearField("examples")
        return found

    def change(self, tenant: str, model: str, name: str, changed: concept_pb2.ConceptSet) -> None:
        """Replaces a set's description; call it within `locked`."""
        path = self._existing(tenant, model, name)
        _, tensors = self._read(path)
        _write(path, changed, {key: value for key, value in tensors.items() if key.startswith(_WEIGHTS)})

    def delete(self, tenant: str, model: str, name: str) -> None:
        """Deletes a set. Raises NotFound."""
        with self._locked(tenant, model):
            self._existing(tenant, model, name).unlink()

    @contextmanager
    def locked(self, tenant: str, model: str) -> Iterator[None]:
        """Keeps other workers from changing the sets of a model for the time of the block."""
        with self._locked(tenant, model):
            yield

    @property
    def features(self) -> Path | None:
        """Directory of cached features; None where nothing is stored."""
        return None if self._root is None else self._root / ".features"

    @contextmanager
    def _locked(self, tenant: str, model: str) -> Iterator[None]:
        directory = self._directory(tenant, model)
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _directory(self, tenant: str, model: str) -> Path:
        if self._root is None:
            raise FailedPrecondition(
                "this worker has no directory for concept sets: set SAGITTAL_CONCEPTS__DIRECTORY to one that all "
                "workers share"
            )
        for part in (tenant, model):
            if part and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", part):
                raise InvalidRequest(f"{part!r} cannot name a directory: use letters, digits, dots", field="model")
        return self._root / tenant / model if model else self._root / tenant

    def _path(self, tenant: str, model: str, name: str, field: str = "name") -> Path:
        if not NAME.match(name):
            text = f"{field} is {name[:80]!r}; give 1 to 64 letters, digits, dots, dashes or underscores"
            raise InvalidRequest(text, field=field)
        return self._directory(tenant, model) / f"{name}{_SUFFIX}"

    def _existing(self, tenant: str, model: str, name: str, field: str = "name") -> Path:
        path = self._path(tenant, model, name, field)
        if not path.exists():
            there = ", ".join(each.stem for each in sorted(path.parent.glob(f"*{_SUFFIX}"))[:24]) or "none"
            raise NotFound(f"{model} has no concept set {name!r}; there is {there}", field=field)
        return path

    @staticmethod
    def _read(path: Path) -> tuple[concept_pb2.ConceptSet, Mapping[str, Tensor]]:
        try:
            with safe_open(path, framework="pt") as opened:
                if (opened.metadata() or {}).get("format") != _FORMAT:
                    raise FailedPrecondition(f"the file of the concept set {path.stem!r} is none of ours: delete it")
            tensors = load_file(path)
            description = concept_pb2.ConceptSet.FromString(tensors[_DESCRIPTION].numpy().tobytes())
        except (SafetensorError, DecodeError, KeyError) as error:
            raise FailedPrecondition(f"the file of the concept set {path.stem!r} is damaged: fit it again") from error
        return description, tensors


class StoredFeatures:
    """A `FeatureCache` of files under a directory, the oldest of which make room."""

    def __init__(self, directory: Path | None, scope: str, *, max_bytes: int, device: torch.device) -> None:
        """Keeps nothing where there is no directory.

        Args:
            directory: Where the files are.
            scope: What all keys are of: tenant and model digest.
            max_bytes: Most bytes of all files.
            device: Where features go.
        """
        self._directory = directory
        self._scope = scope
        self._max_bytes = max_bytes
        self._device = device

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns what is kept under a key; None where nothing is."""
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            tensors = load_file(path, device=str(self._device))
        except (SafetensorError, OSError) as error:
            log.warning("features-unreadable", file=path.name, error=str(error), doing="extracting them again")
            return None
        os.utime(path)
        return tensors

    def put(self, key: str, state: Mapping[str, Tensor]) -> None:
        """Keeps tensors under a key, unless they alone are too large."""
        path = self._path(key)
        size = sum(tensor.nbytes for tensor in state.values())
        if path is None or size > self._max_bytes:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        files = sorted(path.parent.glob(f"*{_SUFFIX}"), key=lambda each: each.stat().st_mtime)
        while files and sum(each.stat().st_size for each in files) + size > self._max_bytes:
            files.pop(0).unlink(missing_ok=True)
        _replace(path, {name: tensor.cpu().contiguous() for name, tensor in state.items()}, {})

    def _path(self, key: str) -> Path | None:
        if self._directory is None:
            return None
        return self._directory / f"{hashlib.sha256(f'{self._scope} {key}'.encode()).hexdigest()}{_SUFFIX}"


def _write(path: Path, description: concept_pb2.ConceptSet, weights: Mapping[str, Tensor]) -> None:
    described = torch.frombuffer(bytearray(description.SerializeToString()), dtype=torch.uint8)
    metadata = {
        "format": _FORMAT,
        "model": description.model,
        "model_version": description.model_version,
        "model_digest": description.model_digest,
        "layer": description.layer,
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    _replace(path, tensors | {_DESCRIPTION: described}, metadata)


def _replace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a file beside the old one, and puts it in its place when it is whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
