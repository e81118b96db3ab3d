"""Concept sets on Redis: a document per tenant, model and name, whose large parts are files.

A set exists once its document does; its files are written before. A sweep deletes files that belong to no set: those of
deleted or replaced sets, and those of fits that ended before the document was stored.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError

from sagittal.core.errors import ConceptSetDamaged, FailedPrecondition, JobFailed, NotFound, SagittalError
from sagittal.core.jobs import Lease
from sagittal.core.text import EXCERPT, shortened, shown
from sagittal.queue.connection import (
    AsyncRunner,
    SyncRunner,
    close_async,
    close_sync,
    connect_async,
    connect_sync,
)
from sagittal.queue.metrics import UNOBSERVED, QueueObserver
from sagittal.queue.protocol import LeaseLost
from sagittal.queue.scripts import load_script, root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles
from sagittal.v1 import concept_pb2

log = structlog.get_logger(__name__)

#: Time within which written files must become part of a set, in seconds.
WRITING_SECONDS = 3600.0

#: Time between two sweeps for unused files, in seconds.
SWEEP_SECONDS = 10.0

#: Files that one sweep deletes at a time.
SWEPT_AT_ONCE = 100

_REVISION = re.compile(r"[0-9]{1,16}")

#: Attempts to update a set that others update at the same time.
MOST_ATTEMPTS = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredConceptSet:
    """A concept set as it is stored."""

    description: concept_pb2.ConceptSet
    """Description without examples."""
    weights: str
    """Name of the file with the explanation network."""
    examples: str
    """Name of the file with the examples."""
    revision: str = ""
    """Changes with each update; empty before the set is stored."""
    job: str = ""
    """Job that fitted it."""


class ConceptSets:
    """The service's side (asyncio)."""

    def __init__(self, settings: QueueSettings, *, max_tenant_bytes: int, observer: QueueObserver = UNOBSERVED) -> None:
        self._max_tenant_bytes = max_tenant_bytes
        settings = settings.shards()[0]
        self._redis = AsyncRunner(connect_async(settings), settings, root_key(settings), observer)

    async def list(
        self, tenant: str, model: str, *, limit: int, page_token: str
    ) -> tuple[Sequence[concept_pb2.ConceptSet], str]:
        """Returns a page of a tenant's sets, by model and name, and the next token; an empty model means all."""
        answer = await self._redis.script(load_script("concepts_list"), tenant, model, page_token, limit)
        more, *flat = answer
        found, last = [], ""
        for member, document, revision in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            last = member.decode(errors="replace")
            described = parse_document(document, last)
            if described is None or not _REVISION.fullmatch(revision.decode(errors="replace")):
                its_model, _, name = last.partition("/")
                await self._set_aside(tenant, its_model, name, revision)
            else:
                found.append(described)
        return found, last if more else ""

    async def get(self, tenant: str, model: str, name: str) -> StoredConceptSet:
        """Returns a set. Raises NotFound, naming those that exist, or FailedPrecondition for a damaged one."""
        answer = await self._redis.script(load_script("concepts_read"), tenant, model, name)
        stored = parse_set(answer, model, name)
        if stored is None:
            await self._set_aside(tenant, model, name, answer[2])
            raise damaged(name)
        return stored

    async def update(
        self,
        tenant: str,
        model: str,
        name: str,
        change: Callable[[concept_pb2.ConceptSet], concept_pb2.ConceptSet],
    ) -> StoredConceptSet:
        """Updates a set atomically and returns it.

        Args:
            tenant: Tenant to which the set belongs.
            model: Model of the set.
            name: Name of the set.
            change: Changes the given description and returns it; called again if another update came first.
        """
        for _ in range(MOST_ATTEMPTS):
            stored = await self.get(tenant, model, name)
            document = change(stored.description).SerializeToString(deterministic=True)
            arguments = tenant, model, name, stored.revision, document, self._max_tenant_bytes
            verdict, *detail = await self._redis.script(load_script("concepts_update"), *arguments)
            if verdict == b"saved":
                return stored
            if verdict == b"full":
                raise full(int(detail[0]), self._max_tenant_bytes)
        raise FailedPrecondition(f"the concept set {shown(name)} is being updated by other callers: try again")

    async def delete(self, tenant: str, model: str, name: str) -> None:
        """Deletes a set; a sweep deletes its files. Raises NotFound."""
        nonce = secrets.token_hex(8)
        if await self._redis.script(load_script("concepts_delete"), tenant, model, name, nonce) != b"deleted":
            await self.get(tenant, model, name)  # raises NotFound with the existing ones

    async def sweep(self, files: ConceptFiles) -> int:
        """Deletes files that belong to no set; returns their number. Raises Unavailable."""
        swept: list[bytes] = []
        while unused := await self._redis.script(load_script("concepts_sweep"), SWEPT_AT_ONCE, *swept[-SWEPT_AT_ONCE:]):
            for name in unused:
                await asyncio.to_thread(files.delete, name.decode(errors="replace"))
            swept += unused
        return len(swept)

    async def keep_sweeping(self, files: ConceptFiles) -> None:
        """Deletes files that belong to no set, repeatedly."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                if deleted := await self.sweep(files):
                    log.info("concept-files-deleted", files=deleted)
            except SagittalError as error:
                log.warning("concept-sweep-failed", error=error.message)

    async def close(self) -> None:
        """Closes all connections."""
        await close_async(self._redis.client)

    async def _set_aside(self, tenant: str, model: str, name: str, revision: bytes) -> None:
        await self._redis.script(load_script("concepts_quarantine"), tenant, model, name, revision)
        log_damage(tenant, model, name)


class WorkerConceptSets:
    """A worker's side (blocking)."""

    def __init__(
        self,
        settings: QueueSettings,
        files: ConceptFiles,
        *,
        max_tenant_bytes: int,
        observer: QueueObserver = UNOBSERVED,
    ) -> None:
        self.files = files
        """The files of the sets."""
        self._max_tenant_bytes = max_tenant_bytes
        settings = settings.shards()[0]
        self._redis = SyncRunner(connect_sync(settings), settings, root_key(settings), observer)

    def get(self, tenant: str, model: str, name: str) -> StoredConceptSet:
        """Returns a set. Raises NotFound, naming those that exist, or FailedPrecondition for a damaged one."""
        answer = self._redis.script(load_script("concepts_read"), tenant, model, name)
        stored = parse_set(answer, model, name)
        if stored is None:
            self._redis.script(load_script("concepts_quarantine"), tenant, model, name, answer[2])
            log_damage(tenant, model, name)
            raise damaged(name)
        return stored

    def write_files(self, files: dict[str, bytes]) -> None:
        """Writes the files of a set before the set is stored. Raises Unavailable."""
        self._redis.script(load_script("concepts_reserve"), WRITING_SECONDS, *files)
        for name, content in files.items():
            self.files.write(name, content)

    def save(self, lease: Lease, stored: StoredConceptSet, size: int, *, replace: bool) -> bool:
        """Stores a set whose files are written, if the lease is valid; returns False if the name is taken.

        Args:
            lease: Lease of the fit. A set stored by an earlier attempt of it is replaced.
            stored: The set.
            size: Bytes of its files.
            replace: Whether it replaces a set of the same name.

        Raises:
            LeaseLost: the lease is lost.
            FailedPrecondition: the tenant's sets would exceed their limit.
        """
        job = lease.job
        return self._save("fit", job.job_id, lease.token, job.tenant, stored, size, replace=replace)

    def import_set(self, tenant: str, stored: StoredConceptSet, size: int) -> bool:
        """Stores a set of an older release; returns False if the name is taken."""
        return self._save("import", "import", 0, tenant, stored, size, replace=False)

    def close(self) -> None:
        """Closes all connections."""
        close_sync(self._redis.client)

    def _save(
        self, how: str, job_id: str, token: int, tenant: str, stored: StoredConceptSet, size: int, *, replace: bool
    ) -> bool:
        described = stored.description
        verdict, *detail = self._redis.script(
            load_script("concepts_save"),
            how,
            job_id,
            token,
            tenant,
            described.model,
            described.name,
            "1" if replace else "",
            described.SerializeToString(deterministic=True),
            stored.weights,
            stored.examples,
            size,
            self._max_tenant_bytes,
        )
        match verdict:
            case b"lost":
                raise LeaseLost(f"job {job_id} was leased again or has ended; token {token} is stale")
            case b"expired":
                raise JobFailed(
                    f"the files of the concept set {described.name!r} took more than {WRITING_SECONDS:g} s to write: "
                    "check whether the store is slow, and fit the set again"
                )
            case b"full":
                raise full(int(detail[0]), self._max_tenant_bytes)
        return bool(verdict == b"saved")


def parse_set(answer: Sequence[bytes], model: str, name: str) -> StoredConceptSet | None:
    """Returns the set in an answer of `concepts_read`; None if it is damaged. Raises NotFound."""
    verdict, *rest = answer
    if verdict != b"found":
        there = ", ".join(each.decode(errors="replace") for each in rest) or "none"
        text = f"{shortened(model, EXCERPT)} has no concept set {shown(name)}; it has: {there}"
        raise NotFound(text, field="name")
    document, *texts = rest
    revision, weights, examples, job = (text.decode(errors="replace") for text in texts)
    described = parse_document(document, f"{model}/{name}")
    if described is None or not _REVISION.fullmatch(revision):
        return None
    return StoredConceptSet(description=described, revision=revision, weights=weights, examples=examples, job=job)


def parse_document(document: bytes, member: str) -> concept_pb2.ConceptSet | None:
    """Returns a description; None if it cannot be parsed or does not belong to MODEL/NAME."""
    try:
        described = concept_pb2.ConceptSet.FromString(document)
    except DecodeError:
        return None
    return described if f"{described.model}/{described.name}" == member else None


def split_examples(described: concept_pb2.ConceptSet) -> tuple[concept_pb2.ConceptSet, bytes]:
    """Returns a description without its examples, and the examples as the content of a file."""
    document, examples = concept_pb2.ConceptSet(), concept_pb2.ConceptSet()
    document.CopyFrom(described)
    for concept in document.concepts:
        examples.concepts.add(index=concept.index, examples=concept.examples)
        concept.ClearField("examples")
    return document, examples.SerializeToString(deterministic=True)


def join_examples(document: concept_pb2.ConceptSet, content: bytes) -> concept_pb2.ConceptSet:
    """Returns a description with the examples from its file."""
    whole = concept_pb2.ConceptSet()
    whole.CopyFrom(document)
    shown_by = {each.index: each.examples for each in concept_pb2.ConceptSet.FromString(content).concepts}
    for concept in whole.concepts:
        concept.examples.extend(shown_by.get(concept.index, ()))
    return whole


def log_damage(tenant: str, model: str, name: str) -> None:
    """Logs a damaged set that was moved aside."""
    log.error("concept-set-damaged", tenant=tenant, model=model, concept_set=name, doing="moving it aside")


def damaged(name: str) -> ConceptSetDamaged:
    """Returns the error for a set that was moved aside."""
    text = f"the stored concept set {shown(name)} is damaged and was moved aside: fit it again"
    return ConceptSetDamaged(text, field="name")


def full(size: int, most: int) -> FailedPrecondition:
    """Returns the error for sets that would exceed the tenant's limit."""
    text = (
        f"the concept sets of this tenant would take {size:,} bytes; SAGITTAL_CONCEPTS__MAX_TENANT_BYTES allows "
        f"{most:,}: delete one with DeleteConceptSet"
    )
    return FailedPrecondition(text)
