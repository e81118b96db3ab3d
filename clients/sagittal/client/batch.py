"""Many images over one call: images in flight, and the outcome of each."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sagittal.client.errors import InvalidRequest, Overloaded, SagittalError
from sagittal.client.explanation import Explanation
from sagittal.client.gathering import Gathering, terminal_error
from sagittal.client.images import ACCEPTED, ImageLike
from sagittal.client.options import Retry
from sagittal.client.parsing import parse_event
from sagittal.client.read_ahead import READERS, ReadAhead
from sagittal.client.requests import check_several, shown, with_image
from sagittal.client.resume import Patience
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb

Images = Iterable[ImageLike] | Mapping[str, ImageLike]
"""Images, or images by key. Without keys, their positions are the keys: "0", "1" and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one of many images: an explanation or an error."""

    key: str
    """The caller's key of the image, or its position."""
    explanation: Explanation | None = None
    error: SagittalError | None = None


@dataclass(slots=True)
class _Entry:
    key: str
    spec: pb.ExplanationSpec
    gathering: Gathering
    patience: Patience
    due: float = 0.0
    """Clock time after which it may be sent again."""


class ManyImages:
    """The state of one `explain_many`.

    If the call breaks, the service cancels its jobs. Unfinished images are sent again with a new request_id; results
    that the service has completed come from its cache. Images for which the service has no room are sent again after
    the delay it gave; until then no further image is sent.
    """

    def __init__(
        self,
        images: Images,
        spec: pb.ExplanationSpec,
        *,
        in_flight: int,
        retry: Retry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
            raise InvalidRequest(f"got {shown(in_flight)}; expected a number of images, at least 1", field="in_flight")
        if isinstance(images, Mapping):
            source: Iterable[tuple[str, ImageLike]] = images.items()
        else:
            several = check_several(images, "images", f"each {ACCEPTED}")
            source = ((str(number), image) for number, image in enumerate(several))
        self._spec = spec
        self._source = ReadAhead(source, self._read, readers=READERS, ahead=in_flight)
        self._in_flight = in_flight
        self._retry = retry
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._postponed: list[_Entry] = []
        self._number = 0
        self.exhausted = False

    @property
    def done(self) -> bool:
        """Whether every image has an outcome."""
        return self.exhausted and not self._entries and not self._postponed

    @property
    def pause(self) -> float:
        """Time until something can be sent, in seconds; 0 while answers are pending."""
        if self._entries or not self._postponed:
            return 0.0
        return max(0.0, min(entry.due for entry in self._postponed) - self._clock())

    @property
    def has_postponed(self) -> bool:
        """Whether the service had no room for some images."""
        return bool(self._postponed)

    def fill(self) -> tuple[Sequence[service_pb.ExplainManyRequest], Sequence[Outcome]]:
        """Returns the requests to send to fill the window, and the outcomes of images that cannot be sent."""
        due = [entry for entry in self._postponed if entry.due <= self._clock()]
        self._postponed = [entry for entry in self._postponed if entry not in due]
        ready = [self._enter(entry) for entry in due]
        refused: list[Outcome] = []
        while not (self.exhausted or self._postponed) and len(self._entries) < self._in_flight:
            item = self._source.take()
            if item is None:
                self.exhausted = True
            elif isinstance(item, Outcome):
                refused.append(item)
            else:
                ready.append(self._enter(self._entry(*item)))
        return ready, refused

    def reopen(self) -> Sequence[service_pb.ExplainManyRequest]:
        """Returns the requests to send over a new call, after a broken one."""
        entries, self._entries = list(self._entries.values()), {}
        return [self._enter(self._entry(each.key, each.spec)) for each in entries]

    def admit(self, event: pb.ExplanationEvent) -> Outcome | None:
        """Processes an event; returns the outcome if it was the last event of a job."""
        entry = self._entries.get(event.request_id)
        if entry is None:
            return None
        failure = terminal_error(event)
        if failure is None:
            entry.gathering.add(parse_event(event))
            if event.WhichOneof("event") != "completed":
                return None
        del self._entries[event.request_id]
        if isinstance(failure, Overloaded):
            return self._postpone(entry, failure)
        for other in self._postponed:
            other.patience.renew(self._retry.stream_seconds)
        if failure is not None:
            return Outcome(key=entry.key, error=failure)
        return Outcome(key=entry.key, explanation=entry.gathering.explanation())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._source.close()

    def _read(self, item: tuple[str, ImageLike]) -> tuple[str, pb.ExplanationSpec] | Outcome:
        """Returns the request of an image, or the outcome of one that cannot be sent."""
        key, image = item
        try:
            return key, with_image(self._spec, image)
        except SagittalError as error:
            return Outcome(key=key, error=error)

    def _postpone(self, entry: _Entry, failure: Overloaded) -> Outcome | None:
        """Postpones an image until the service may have room; returns its outcome if the time for retries is over."""
        try:
            entry.due = self._clock() + entry.patience.wait_after(failure)
        except Overloaded as error:
            return Outcome(key=entry.key, error=error)
        self._postponed.append(entry)
        return None

    def _entry(self, key: str, spec: pb.ExplanationSpec) -> _Entry:
        patience = Patience(self._retry, self._retry.stream_seconds, self._clock)
        return _Entry(key, spec, Gathering(model=self._spec.model), patience)

    def _enter(self, entry: _Entry) -> service_pb.ExplainManyRequest:
        self._number += 1
        base = entry.spec.request_id.partition("~")[0]
        entry.spec.request_id = f"{base}~{self._number}"
        self._entries[entry.spec.request_id] = entry
        return service_pb.ExplainManyRequest(spec=entry.spec)
