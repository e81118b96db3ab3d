"""Batches: named sets of items that outlive the client, and what both clients share to run them."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import TracebackType
from typing import Annotated, Any, Self, TypedDict

from google.protobuf import duration_pb2

from sagittal.client.errors import InvalidImage, InvalidRequest, JobCancelled, SagittalError, from_status
from sagittal.client.events import From
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import parse_explanation
from sagittal.client.images import ImageLike, encode_image
from sagittal.client.methods import Method, MethodLike, pack_method, resolve_method
from sagittal.client.models import Model
from sagittal.client.parsing import enum_name, parse
from sagittal.client.read_ahead import ReadAhead
from sagittal.client.requests import (
    Baseline,
    BaselineName,
    CacheName,
    Metrics,
    build,
    build_spec,
    check_kind,
    check_names,
    enum_value,
    shown,
)
from sagittal.v1 import batch_service_pb2 as service_pb
from sagittal.v1 import explanation_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """Numbers of items by state."""

    in_flight: int = 0
    """Queued or running."""
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """Items that have ended."""
        return self.completed + self.failed + self.cancelled


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCost:
    """Cost of items."""

    items: int = 0
    """Items whose cost this is."""
    evaluations: int = 0
    """Model evaluations."""
    worker_seconds: float = 0.0
    """Time on workers, each of which executes several jobs at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch."""

    name: str
    state: str
    """"open", "paused", "completed" or "cancelled"."""
    expected_items: int
    """Number of items that it will have; 0 if unknown."""
    created: Annotated[datetime, From("create_time")]
    changed: Annotated[datetime, From("change_time")]
    model: str = ""
    model_version: str = ""
    counts: BatchCounts = field(default_factory=BatchCounts)
    spent: BatchCost = field(default_factory=BatchCost)
    """Cost of its items so far. Items that shared the answer of another job cost nothing."""
    remaining: BatchCost | None = None
    """Expected cost of the remaining items, at the mean of those that have ended; None if that is unknown."""


def parse_batch(message: service_pb.Batch) -> Batch:
    """Returns a batch."""
    return parse(
        Batch,
        message,
        model=message.spec.model,
        model_version=message.spec.model_version,
        counts=parse(BatchCounts, message.counts),
        spent=_cost(message.spent),
        remaining=_cost(message.remaining) if message.HasField("remaining") else None,
    )


def _cost(message: service_pb.BatchCost) -> BatchCost:
    seconds = _seconds(message.worker_time)
    return BatchCost(items=message.items, evaluations=message.evaluations, worker_seconds=seconds)


def _seconds(duration: duration_pb2.Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


class ItemOptions(TypedDict, total=False):
    """Options of one item, which override those of its batch; labels are added."""

    method: MethodLike | None
    target: int | str | None
    """Index or label of the class to explain."""
    baseline: Baseline | BaselineName
    metrics: Metrics
    """Also the boxes of the object."""
    seed: int
    deadline: float | None
    """Maximum time of the item from its acceptance, waiting included, in seconds; without one it may wait for any
    time."""
    max_evaluations: int
    cache: CacheName
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchItem:
    """An image to add to a batch."""

    key: str
    """Identifies it in its batch."""
    image: ImageLike | Callable[[], ImageLike]
    """The image, or a function that reads it; functions are called in several threads at once."""
    options: ItemOptions = field(default_factory=ItemOptions)
    """Options that override those of the batch."""


class ItemState:
    """States of an item."""

    IN_FLIGHT, COMPLETED, FAILED, CANCELLED = "in_flight", "completed", "failed", "cancelled"


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """An item that has ended, or its state in a list."""

    key: str
    state: str
    """"in_flight", "completed", "failed" or "cancelled"."""
    job_id: str = ""
    """Its job; empty if there is none, or if it was deleted."""
    error: SagittalError | None = None
    """Why it failed or was cancelled."""
    message: pb.Explanation | None = None
    """The job with its events, as the message of the API; None in lists, and if the job was deleted."""

    @cached_property
    def explanation(self) -> Explanation | None:
        """The explanation of a completed item, parsed when it is first read."""
        if self.state != ItemState.COMPLETED or self.message is None:
            return None
        return parse_explanation(self.message)


def parse_item(message: service_pb.BatchItem) -> BatchResult:
    """Returns an item."""
    state = enum_name(service_pb.BatchItemState.DESCRIPTOR, message.state).replace("-", "_")
    error: SagittalError | None = None
    if message.HasField("failure"):
        error = from_status(message.failure, job_id=message.job_id)
    elif state == ItemState.CANCELLED:
        error = JobCancelled(f"the item {message.key!r} was cancelled", job_id=message.job_id)
    explanation = message.explanation if message.HasField("explanation") else None
    return BatchResult(key=message.key, state=state, job_id=message.job_id, error=error, message=explanation)


#: Field of the specification for each option of an item.
_FIELDS: Mapping[str, str] = {"cache": "cache_policy"}


def common_spec(spec: pb.ExplanationSpec) -> pb.ExplanationSpec:
    """Returns what items have in common, from the request of an explanation without its image."""
    spec.ClearField("request_id")
    spec.lane = pb.LANE_BATCH
    return spec


def own_spec(options: ItemOptions, model: Model) -> pb.ExplanationSpec:
    """Returns what an item overrides. Raises InvalidRequest."""
    own = pb.ExplanationSpec()
    if not options:
        return own
    check_names(options, ItemOptions.__optional_keys__)
    method = options.get("method")
    name = Method(method) if isinstance(method, str) else method if isinstance(method, Method) else None
    packed = resolve_method(name, model.methods) if name is not None else None
    if name is None and method is not None:
        packed = pack_method(method)
    given: Any = {"model": model.name, **options}
    whole = build_spec(packed, **given)
    for option, value in options.items():
        if value is not None:
            place = _FIELDS.get(option, option)
            own.MergeFrom(pb.ExplanationSpec(**{place: getattr(whole, place)}))
    return own


def item_states(states: Iterable[str] | str) -> list[Any]:
    """Returns the API's states by their names. Raises InvalidRequest."""
    given = [states] if isinstance(states, str) else list(states)
    return [enum_value(service_pb.BatchItemState, "BATCH_ITEM_STATE_", each, "states") for each in given]


@dataclass(frozen=True, slots=True)
class ReadItem:
    """An item whose image was read, as the request that adds it."""

    request: service_pb.AddBatchItemsRequest
    size: int
    """Bytes of the request."""


def read_item(model: Model, largest: int, item: BatchItem) -> ReadItem:
    """Reads the image of an item; an item that cannot be read is reported to the service instead.

    Args:
        model: The model, which methods are resolved for.
        largest: Largest size of a request in bytes.
        item: The item.
    """
    request = service_pb.AddBatchItemsRequest(key=item.key, results_only=True)
    try:
        image = item.image() if callable(item.image) else item.image
        request.spec.CopyFrom(own_spec(item.options, model))
        request.spec.image.CopyFrom(encode_image(image))
        if (size := request.ByteSize()) > largest:
            text = f"the item has {size:,} bytes, and a message at most {largest:,}: send a smaller image"
            raise InvalidImage(text)
    except (SagittalError, OSError, ValueError) as error:
        request.ClearField("spec")
        request.unreadable.message = str(error)[:1000] or type(error).__name__
    return ReadItem(request, request.ByteSize())


class Window:
    """The items of a run that are in flight: sent or to be sent, and without a result.

    Their requests are kept, so that they can be sent again over another call. Thread-safe.
    """

    def __init__(
        self, name: str, source: ReadAhead[BatchItem, ReadItem], *, in_flight: int, max_bytes: int, renew: bool
    ) -> None:
        for what, number in (("in_flight", in_flight), ("max_bytes", max_bytes)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InvalidRequest(f"got {shown(number)}; expected an integer, at least 1", field=what)
        self._name = name
        self._source = source
        self._in_flight = in_flight
        self._max_bytes = max_bytes
        self._renew = renew
        self._lock = threading.Lock()
        self._taking = threading.Lock()
        self._entries: dict[str, ReadItem] = {}
        self._unsent: dict[str, ReadItem] = {}
        self._bytes = 0
        self._exhausted = False
        self.failure: Exception | None = None
        """Why the items could not be read to their end; those before it still get their results."""

    @property
    def done(self) -> bool:
        """Whether every item has a result."""
        with self._lock:
            return self._exhausted and not self._entries

    @property
    def has_room(self) -> bool:
        """Whether a request is to be sent again, or another item may be in flight."""
        with self._lock:
            fits = len(self._entries) < self._in_flight and self._bytes < self._max_bytes
            return bool(self._unsent) or (fits and not self._exhausted)

    @property
    def is_low(self) -> bool:
        """Whether to wake the sender: it then sends several items, because to wake it for each costs more."""
        with self._lock:
            most, most_bytes = self._in_flight - max(self._in_flight // 8, 1), self._max_bytes * 7 // 8
            low = len(self._entries) <= most and self._bytes <= most_bytes
            return bool(self._unsent) or (not self._entries if self._exhausted else low)

    def next_request(self) -> service_pb.AddBatchItemsRequest | None:
        """Returns the next request to send; None if there is none now. Waits for the image."""
        with self._lock:
            if self._unsent:
                return self._unsent.pop(next(iter(self._unsent))).request
        with self._taking:
            item = self._take()
        with self._lock:
            if item is None:
                self._exhausted = True
                return None
            request = item.request
            if request.key in self._entries:
                return None  # given twice; it is in flight
            request.batch, request.renew = self._name, self._renew
            self._entries[request.key] = item
            self._bytes += item.size
            return request

    def _take(self) -> ReadItem | None:
        try:
            return self._source.take()
        except Exception as error:  # noqa: BLE001 - the run raises it at its end
            self.failure = error
            return None

    def put_back(self, request: service_pb.AddBatchItemsRequest) -> None:
        """Takes back a request that was not sent."""
        with self._lock:
            if request.key in self._entries:
                self._unsent[request.key] = self._entries[request.key]

    def reopen(self) -> None:
        """Prepares all items in flight to be sent over another call."""
        with self._lock:
            self._unsent = dict(self._entries)

    def admit(self, response: service_pb.AddBatchItemsResponse) -> BatchResult | None:
        """Processes a response; returns the result of an item that has ended."""
        if response.HasField("lost"):
            with self._lock:
                if (item := self._entries.get(response.lost)) is not None:
                    item.request.renew = True
                    self._unsent[response.lost] = item
            return None
        if response.item.state in (service_pb.BATCH_ITEM_STATE_UNSPECIFIED, service_pb.BATCH_ITEM_STATE_IN_FLIGHT):
            return None
        with self._lock:
            item = self._entries.pop(response.item.key, None)
            self._unsent.pop(response.item.key, None)
            if item is None:
                return None
            self._bytes -= item.size
        return parse_item(response.item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()


#: Called with a reason such as "QUEUE_FULL" and its message when items wait, and with two empty texts afterwards.
OnWaiting = Callable[[str, str], None]


def checked_batch(name: object) -> str:
    """Returns the name of a batch. Raises InvalidRequest if it is no text."""
    return check_kind(name, str, "name", "the name of a batch")


def page_of_items(name: str, states: Iterable[str] | str, page_token: str) -> service_pb.ListBatchItemsRequest:
    """Returns the request of one page of items."""
    return build(
        service_pb.ListBatchItemsRequest,
        name=checked_batch(name),
        states=item_states(states),
        page_size=1000,
        page_token=page_token,
    )
