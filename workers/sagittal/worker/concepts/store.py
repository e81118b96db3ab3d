"""What a worker stores of concepts: sets, as documents in Redis with files beside them, and extracted features.

Nothing in a file is code: weights are safetensors, examples a message.
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

from sagittal.core.errors import AlreadyExists, FailedPrecondition, JobFailed, NotFound, SagittalError, Unavailable
from sagittal.core.jobs import Lease
from sagittal.explain.concepts import SRAE
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage, examples_file, weights_file
from sagittal.registry.concept_sets import DamagedConceptSet, StoredConceptSet, WorkerConceptSets, split_examples
from sagittal.v1 import concept_pb2

log = structlog.get_logger(__name__)

_SUFFIX = ".safetensors"
_FEATURES = ".features"

#: What an older release stored in one file beside the weights, which had a prefix, and what its name gets here.
_DESCRIPTION, _OLD_PREFIX, _IMPORTED = "description", "srae.", ".imported"

_FIELD = "spec.method.concepts.concept_set"


class ConceptSettings(ConceptStorage):
    """Where concept sets are kept, and what they may be fitted to."""

    datasets: dict[str, Path] = Field(default_factory=dict)
    """Directories of pictures that sets may be fitted to, by name, as JSON. Any caller may name them, and sees the
    pictures that excite a concept."""
    max_feature_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024 * 1024
    """Bytes of extracted features that are kept in the directory; the oldest go first. 0 keeps none."""


class ConceptStore:
    """The concept sets, and the directory of extracted features."""

    def __init__(self, sets: WorkerConceptSets, directory: Path | None) -> None:
        self._sets = sets
        self._directory = directory

    def check_free(self, lease: Lease, model: str, name: str, *, replace: bool) -> None:
        """Raises where a fit could not be stored: there is no place, or its name is taken by another fit."""
        self._sets.files.check("worker")
        try:
            stored = self._sets.get(lease.job.tenant, model, name)
        except (NotFound, DamagedConceptSet):
            return
        if not replace and stored.job != lease.job.job_id:
            raise _taken(model, name)

    def save(self, lease: Lease, described: concept_pb2.ConceptSet, srae: SRAE, *, replace: bool) -> None:
        """Stores a set: first its files, and then, if the lease is still held, the document by which it is there.

        Raises:
            AlreadyExists: another set of its name is there, and `replace` is not set.
            LeaseLost: another worker has the job now.
            FailedPrecondition: the tenant's sets would take too many bytes.
        """
        try:
            stored, size = self._write(described, srae.state_dict())
        except Unavailable as error:
            raise JobFailed(f"the concept set {described.name!r} cannot be stored: {error.message}") from error
        if not self._sets.save(lease, stored, size, replace=replace):
            raise _taken(described.model, described.name)
        log.info("concept-set-stored", model=described.model, concept_set=described.name, tenant=lease.job.tenant)

    def load(self, tenant: str, model: str, name: str, digest: str) -> tuple[concept_pb2.ConceptSet, SRAE]:
        """Returns a set and its network. Raises FailedPrecondition where it is of another model digest."""
        self._sets.files.check("worker")
        with _naming_the_field():
            stored = self._sets.get(tenant, model, name)
            described = stored.description
            if described.model_digest != digest:
                raise FailedPrecondition(
                    f"the concept set {name!r} was fitted on another {model} (digest {described.model_digest[:12]}) "
                    f"than the one that is served (digest {digest[:12]}): fit it again"
                )
            return described, SRAE.of_state(_weights(self._sets.files.read(stored.weights), name))

    def import_older(self) -> bool:
        """Takes over the sets that an older release kept in the directory, each in a file of its own.

        A file that was taken over is renamed, so that a set which is deleted later does not come back. One that cannot
        be is reported and left there.

        Returns:
            False where Redis or the store is away, so that it must be done again.
        """
        if self._directory is None or not self._sets.files.configured:
            return True
        for path in sorted(self._directory.glob(f"*/*/*{_SUFFIX}")):
            try:
                self._import(path)
            except FileNotFoundError:
                continue  # another worker was faster
            except Unavailable as error:
                log.warning("concept-import-waits", error=error.message)
                return False
            except (SagittalError, SafetensorError, DecodeError, KeyError, OSError) as error:
                log.error("concept-set-not-imported", file=str(path), error=str(error), doing="leaving it there")
        return True

    def features(self, scope: str, *, max_bytes: int, device: torch.device) -> "StoredFeatures":
        """Returns the cache of extracted features; it keeps nothing where there is no directory."""
        directory = None if self._directory is None else self._directory / _FEATURES
        return StoredFeatures(directory, scope, max_bytes=max_bytes, device=device)

    def close(self) -> None:
        """Closes all connections."""
        self._sets.close()

    def _write(self, described: concept_pb2.ConceptSet, weights: Mapping[str, Tensor]) -> tuple[StoredConceptSet, int]:
        """Writes the files of a set, and returns what is to be stored of it and the bytes of its files."""
        # The nonce keeps the files of equal sets apart, so that each can be deleted with its own.
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
    """Names the field of an explanation that names a set, in errors; a store that is away fails the job."""
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
