"""A worker's storage for concepts: sets, as documents in Redis with files beside them, and extracted features.

No file contains code: weights are safetensors, examples a message.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import torch
from google.protobuf.message import DecodeError
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from sagittal.core.errors import (
    AlreadyExists,
    ConceptSetDamaged,
    FailedPrecondition,
    JobFailed,
    NotFound,
    SagittalError,
    Unavailable,
)
from sagittal.core.jobs import Lease
from sagittal.explain.concepts import SRAE
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage, examples_file, weights_file
from sagittal.registry.concept_sets import StoredConceptSet, WorkerConceptSets, split_examples
from sagittal.v1 import concept_pb2

log = structlog.get_logger(__name__)

_SUFFIX = ".safetensors"
_FEATURES = ".features"

#: Files that an older release stored, with a common prefix, and their present names.
_DESCRIPTION, _OLD_PREFIX, _IMPORTED = "description", "srae.", ".imported"

_FIELD = "spec.method.concepts.concept_set"


class ConceptSettings(ConceptStorage):
    """Storage of concept sets, and datasets that they may be fitted to."""

    datasets: dict[str, Path] = Field(default_factory=dict)
    """Directories of images that sets may be fitted to, by name, as JSON. Any caller may use them, and sees the images
    that excite a concept."""
    max_feature_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024 * 1024
    """Bytes of extracted features that are kept in the directory; the oldest are deleted first. 0 keeps none."""


class ConceptStore:
    """The concept sets, and the directory of extracted features."""

    def __init__(self, sets: WorkerConceptSets, directory: Path | None) -> None:
        self._sets = sets
        self._directory = directory

    def check_free(self, lease: Lease, model: str, name: str, *, replace: bool) -> None:
        """Raises an error if a fit could not be stored: there is no storage, or another fit has its name."""
        self._sets.files.check("worker")
        try:
            stored = self._sets.get(lease.job.tenant, model, name)
        except (NotFound, ConceptSetDamaged):
            return
        if not replace and stored.job != lease.job.job_id:
            raise _taken(model, name)

    def save(self, lease: Lease, described: concept_pb2.ConceptSet, srae: SRAE, *, replace: bool) -> None:
        """Stores a set: first its files, and then, if the lease is still held, the document that makes it visible.

        Raises:
            AlreadyExists: there is another set with its name, and `replace` is not set.
            LeaseLost: another worker has the job now.
            FailedPrecondition: the tenant's sets would exceed their bytes.
        """
        try:
            stored, size = self._write(described, srae.state_dict())
        except Unavailable as error:
            raise JobFailed(f"the concept set {described.name!r} cannot be stored: {error.message}") from error
        if not self._sets.save(lease, stored, size, replace=replace):
            raise _taken(described.model, described.name)
        log.info("concept-set-stored", model=described.model, concept_set=described.name, tenant=lease.job.tenant)

    def load(self, tenant: str, model: str, name: str, digest: str) -> tuple[concept_pb2.ConceptSet, SRAE]:
        """Returns a set and its network. Raises FailedPrecondition if it belongs to another model digest."""
        self._sets.files.check("worker")
        with _naming_the_field():
            stored = self._sets.get(tenant, model, name)
            described = stored.description
            if described.model_digest != digest:
                raise FailedPrecondition(
                    f"the concept set {name!r} was fitted to another {model} (digest {described.model_digest[:12]}) "
                    f"than the served one (digest {digest[:12]}): fit it again"
                )
            return described, SRAE.of_state(_weights(self._sets.files.read(stored.weights), name))

    def import_older(self) -> bool:
        """Imports the sets that an older release kept in the directory, each in a file of its own.

        An imported file is renamed, so that a set that is deleted later does not reappear. A file that cannot be
        imported is reported and kept.

        Returns:
            False if Redis or the store is unavailable, so that it must be repeated.
        """
        if self._directory is None or not self._sets.files.configured:
            return True
        for path in sorted(self._directory.glob(f"*/*/*{_SUFFIX}")):
            try:
                self._import(path)
            except FileNotFoundError:
                continue  # another worker imported it first
            except Unavailable as error:
                log.warning("concept-import-waits", error=error.message)
                return False
            except (SagittalError, SafetensorError, DecodeError, KeyError, OSError) as error:
                log.error("concept-set-not-imported", file=str(path), error=str(error), doing="keeping the file")
        return True

    def features(self, scope: str, *, max_bytes: int, device: torch.device) -> "StoredFeatures":
        """Returns the cache of extracted features; it stores nothing without a directory."""
        directory = None if self._directory is None else self._directory / _FEATURES
        return StoredFeatures(directory, scope, max_bytes=max_bytes, device=device)

    def close(self) -> None:
        """Closes all connections."""
        self._sets.close()

    def _write(self, described: concept_pb2.ConceptSet, weights: Mapping[str, Tensor]) -> tuple[StoredConceptSet, int]:
        """Writes the files of a set, and returns its stored form and the size of its files in bytes."""
        # The nonce distinguishes the files of equal sets, so that each can be deleted with its own.
        metadata = {"model": described.model, "name": described.name, "nonce": secrets.token_hex(16)}
        network = save({name: each.detach().cpu().contiguous() for name, each in weights.items()}, metadata)
        document, examples = split_examples(described)
        name = weights_file(network)
        stored = StoredConceptSet(description=document, weights=name, examples=examples_file(examples, name))
        self._sets.write_files({stored.weights: network, stored.examples: examples})
        return stored, len(network) + len(examples)

    def _import(self, path: Path) -> None:
        tensors = load_file(path)
        described = concept_pb2.ConceptSet.FromString(tensors[_DESCRIPTION].numpy().tobytes())
        weights = {
            name.removeprefix(_OLD_PREFIX): each for name, each in tensors.items() if name.startswith(_OLD_PREFIX)
        }
        tenant = path.parent.parent.name
        is_new = self._sets.import_set(tenant, *self._write(described, weights))
        path.rename(path.with_name(f"{path.name}{_IMPORTED}"))
        log.info("concept-set-imported", tenant=tenant, model=described.model, name=described.name, new=is_new)


def connect_concept_store(
    settings: ConceptSettings, queue: QueueSettings, observer: QueueObserver = UNOBSERVED
) -> ConceptStore:
    """Returns the store of the settings; it connects when it is first used."""
    files, most = ConceptFiles(settings), settings.max_tenant_bytes
    return ConceptStore(WorkerConceptSets(queue, files, max_tenant_bytes=most, observer=observer), settings.directory)


@contextmanager
def _naming_the_field() -> Iterator[None]:
    """Adds the field of an explanation that names a set to errors; an unavailable store fails the job."""
    try:
        yield
    except (NotFound, FailedPrecondition) as error:
        error.field = _FIELD
        raise
    except Unavailable as error:
        raise JobFailed(error.message) from error


def _weights(content: bytes, name: str) -> Mapping[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise FailedPrecondition(f"the weights of the concept set {name!r} cannot be read: fit it again") from error


def _taken(model: str, name: str) -> AlreadyExists:
    text = f"{model} has a concept set {name!r} already: choose another name, or set `replace`"
    return AlreadyExists(text, field="settings.name")


class StoredFeatures:
    """A `FeatureCache` of files under a directory; the oldest are deleted to make room."""

    def __init__(self, directory: Path | None, scope: str, *, max_bytes: int, device: torch.device) -> None:
        """Constructs the cache; without a directory it stores nothing.

        Args:
            directory: Directory of the files.
            scope: Prefix of all keys: tenant and model digest.
            max_bytes: Maximum bytes of all files.
            device: Device of the returned features.
        """
        self._directory = directory
        self._scope = scope
        self._max_bytes = max_bytes
        self._device = device

    def get(self, key: str) -> Mapping[str, Tensor] | None:
        """Returns the tensors stored under a key; None if there are none."""
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
        """Stores tensors under a key, unless they alone are too large."""
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


def _replace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a new file, and replaces the old one atomically."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
