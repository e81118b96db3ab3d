"""Batches on Redis: named sets of items, whose jobs are in the batch lane.

A batch keeps the state of each item. The scripts that end jobs also change the state of their items, so the two cannot
disagree, and an item has at most one job at a time.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from sagittal.core.errors import AlreadyExists, FailedPrecondition, NotFound, Overloaded
from sagittal.core.text import shown
from sagittal.queue.settings import QueueSettings
from sagittal.v1 import explanation_pb2

#: Items that one script looks at.
ITEMS_AT_ONCE = 1_000


class BatchState(StrEnum):
    """State of a batch."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class ItemState(StrEnum):
    """State of an item: the letter by which the scripts know it."""

    IN_FLIGHT = "q"
    COMPLETED = "c"
    FAILED = "f"
    CANCELLED = "x"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A batch as it is stored."""

    name: str
    spec: bytes
    """The serialized specification that its items share."""
    state: BatchState
    created: float
    """Seconds since the epoch."""
    changed: float
    """When it or one of its items last changed."""
    expected: int
    """Number of items that it will have; 0 if unknown."""
    counts: Mapping[ItemState, int]
    evaluations: int
    """Model evaluations of its items so far."""
    seconds: float
    """Time of its items on workers so far, in seconds."""
    computed: int
    """Items to which these two belong; the others shared the answer of another job."""

    def common(self) -> explanation_pb2.ExplanationSpec:
        """Returns what its items have in common. Raises FailedPrecondition if that is damaged."""
        try:
            return explanation_pb2.ExplanationSpec.FromString(self.spec)
        except DecodeError as error:
            text = f"the stored specification of the batch {shown(self.name)} is damaged: delete it and create it again"
            raise FailedPrecondition(text, field="batch") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """An item as it is stored."""

    key: str
    state: ItemState
    job_id: str
    """Its job; empty if there is none or it was deleted."""
    failure: status_pb2.Status | None = None
    """Why it failed, if that is kept."""


class ItemKnown(Exception):
    """The item was added before; nothing was queued."""

    def __init__(self, item: StoredItem) -> None:
        super().__init__(item.key)
        self.item = item


class BatchPaused(Exception):
    """The batch takes no items until it is resumed."""


Script = Callable[..., Awaitable[Any]]


class Batches:
    """The batches of all tenants (asyncio). Every method but `create` and `list` raises NotFound for an unknown one."""

    def __init__(self, script: Script, settings: QueueSettings) -> None:
        """Stores how scripts are run: `script(name, *arguments)`."""
        self._script = script
        self._settings = settings

    async def create(self, tenant: str, name: str, spec: bytes, expected: int) -> tuple[StoredBatch, bool]:
        """Creates a batch, or finds the equal one; returns it, and whether it is new.

        Raises:
            AlreadyExists: a batch of this name has another specification.
            Overloaded: the tenant has too many batches.
        """
        answer = await self._script("batch_create", tenant, name, spec, expected, self._settings.max_batches)
        if answer[0] == b"other":
            text = f"the batch {shown(name)} exists with another specification: choose another name, or send the same"
            raise AlreadyExists(text, field="name")
        if answer[0] == b"full":
            text = f"you have {self._settings.max_batches:,} batches, your limit (max_batches): delete some"
            raise Overloaded(text, field="name")
        return parse_batch(answer[1]), answer[0] == b"created"

    async def get(self, tenant: str, name: str, *, field: str = "name") -> StoredBatch:
        """Returns a batch; `field` is the request's field that names it."""
        return _found(await self._script("batch_get", tenant, name), name, field)

    async def list(self, tenant: str, *, limit: int, page_token: str) -> tuple[Sequence[StoredBatch], str]:
        """Returns a page of batches by name, and the token of the next page (empty at the end)."""
        more, *views = await self._script("batch_list", tenant, page_token, limit)
        found = [parse_batch(view) for view in views]
        return found, found[-1].name if more and found else ""

    async def change(self, tenant: str, name: str, state: BatchState) -> StoredBatch:
        """Changes the state of a batch; a cancelled one stays cancelled."""
        return _found(await self._script("batch_change", tenant, name, state.value), name)

    async def live_jobs(self, tenant: str, name: str) -> AsyncIterator[str]:
        """Yields the jobs of items in flight."""
        cursor = "0"
        while True:
            answer = await self._script("batch_live", tenant, name, cursor, ITEMS_AT_ONCE)
            for job_id in answer[1:]:
                yield job_id.decode(errors="replace")
            cursor = answer[0].decode()
            if cursor == "0":
                return

    async def items(
        self, tenant: str, name: str, states: Sequence[ItemState], *, limit: int, page_token: str
    ) -> tuple[Sequence[StoredItem], str]:
        """Returns items in any of these states (all if none is given) among about `limit`, and the next token."""
        letters = "".join(states)
        answer = await self._script("batch_items", tenant, name, page_token or "0", limit, letters)
        if not answer:
            raise unknown_batch(name)
        cursor, *flat = answer
        groups = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
        following = b"" if cursor == b"0" else cursor
        return [parse_item(key.decode(errors="replace"), *rest) for key, *rest in groups], following.decode()

    async def fail(self, tenant: str, name: str, key: str, event: bytes) -> StoredItem:
        """Records an item without a job as failed, unless it is known; returns it."""
        answer = await self._script("batch_fail", tenant, name, key, event, self._settings.max_batch_items)
        if answer[0] == b"batch":
            raise refused_item(answer[1], name, self._settings)
        return parse_item(key, *answer[1:])

    async def retry(self, tenant: str, name: str, keys: Sequence[str]) -> int:
        """Forgets failed and cancelled items, or those with the given keys; returns their number."""
        cursor, forgotten = "0", 0
        while True:
            answer = await self._script("batch_retry", tenant, name, cursor, ITEMS_AT_ONCE, *keys)
            if not answer:
                raise unknown_batch(name)
            cursor, forgotten = answer[0].decode(), forgotten + int(answer[1])
            if cursor == "0":
                return forgotten

    async def delete(self, tenant: str, name: str) -> None:
        """Deletes a batch. Raises FailedPrecondition while items are in flight."""
        answer = await self._script("batch_delete", tenant, name, secrets.token_hex(8))
        if answer == b"unknown":
            raise unknown_batch(name)
        if answer == b"live":
            text = f"items of the batch {shown(name)} are in flight: cancel it, and delete it when they have ended"
            raise FailedPrecondition(text, field="name")


def parse_batch(view: Sequence[bytes]) -> StoredBatch:
    """Returns the batch for an answer of the script function `view_batch`."""
    name, spec, state, created, changed, *numbers = view
    expected, live, completed, failed, cancelled, evaluations, milliseconds, computed = (
        max(int(float(number)), 0) for number in numbers
    )
    return StoredBatch(
        name=name.decode(errors="replace"),
        spec=spec,
        state=BatchState(state.decode()),
        created=float(created),
        changed=float(changed),
        expected=expected,
        counts={
            ItemState.IN_FLIGHT: live,
            ItemState.COMPLETED: completed,
            ItemState.FAILED: failed,
            ItemState.CANCELLED: cancelled,
        },
        evaluations=evaluations,
        seconds=milliseconds / 1e3,
        computed=computed,
    )


def parse_item(key: str, letter: bytes, job_id: bytes, event: bytes) -> StoredItem:
    """Returns an item from the state, job and last event that a script answered."""
    state = ItemState(letter.decode())
    failure = _failure(event) if state is ItemState.FAILED else None
    return StoredItem(key=key, state=state, job_id=job_id.decode(errors="replace"), failure=failure)


def _failure(event: bytes) -> status_pb2.Status | None:
    try:
        parsed = explanation_pb2.ExplanationEvent.FromString(event)
    except DecodeError:
        return None
    return parsed.failed if parsed.HasField("failed") else None


def refused_item(verdict: bytes, name: str, settings: QueueSettings) -> Exception:
    """Returns why a batch does not take an item."""
    if verdict == b"paused":
        return BatchPaused(name)
    if verdict == b"unknown":
        return unknown_batch(name, "batch")
    if verdict == b"full":
        most = settings.max_batch_items
        text = f"your batches have {most:,} items, your limit (max_batch_items): delete batches that have ended"
        return Overloaded(text, retry_after=settings.overload_retry_after)
    text = f"the batch {shown(name)} is cancelled and takes no items: create another"
    return FailedPrecondition(text, field="batch")


def _found(view: Sequence[bytes] | None, name: str, field: str = "name") -> StoredBatch:
    if not view:
        raise unknown_batch(name, field)
    return parse_batch(view)


def unknown_batch(name: str, field: str = "name") -> NotFound:
    """Returns the error for a batch that does not exist."""
    text = f"no batch {shown(name)}: it was never created, was deleted, or its retention has passed"
    return NotFound(text, field=field)
