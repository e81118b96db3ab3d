"""Many images over one call: what is in flight, and what came of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sagittal.client.errors import InvalidImage, SagittalError
from sagittal.client.explanation import Explanation, Gathering, terminal_error
from sagittal.client.images import ImageLike
from sagittal.client.parsing import parse_event
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb

Images = Iterable[ImageLike] | Mapping[str, ImageLike]
"""Pictures, or pictures by key. Without keys they are known by their position: "0", "1" and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one of many images: an explanation, or the error that was meant."""

    key: str
    """The caller's key of the image, or its position."""
    explanation: Explanation | None = None
    error: SagittalError | None = None


@dataclass(slots=True)
class _Entry:
    key: str
    spec: pb.ExplanationSpec
    gathering: Gathering


class Batch:
    """The state of one `explain_many`.

    A broken call drops its jobs on the service's side, so what had not ended is put again under a new request_id;
    whatever the service has finished of it comes from its cache.
    """

    def __init__(
        self, images: Images, build: Callable[[ImageLike], pb.ExplanationSpec], *, model: str, in_flight: int
    ) -> None:
        keyed = images.items() if isinstance(images, Mapping) else ((str(i), each) for i, each in enumerate(images))
        self._source: Iterator[tuple[str, ImageLike]] = iter(keyed)
        self._build = build
        self._model = model
        self._in_flight = in_flight
        self._entries: dict[str, _Entry] = {}
        self._number = 0
        self.exhausted = False

    @property
    def done(self) -> bool:
        """Whether every image has its outcome."""
        return self.exhausted and not self._entries

    def fill(self) -> tuple[Sequence[service_pb.ExplainManyRequest], Sequence[Outcome]]:
        """Returns requests to send so that enough are in flight, and the outcomes of images that cannot be sent."""
        ready: list[service_pb.ExplainManyRequest] = []
        refused: list[Outcome] = []
        while len(self._entries) < self._in_flight:
            item = next(self._source, None)
            if item is None:
                self.exhausted = True
                break
            key, image = item
            try:
                spec = self._build(image)
            except SagittalError as error:
                refused.append(Outcome(key=key, error=error))
            except OSError as error:
                unreadable = InvalidImage(f"cannot read the image: {error}", field="spec.image")
                refused.append(Outcome(key=key, error=unreadable))
            else:
                ready.append(self._enter(_Entry(key, spec, Gathering(model=self._model))))
        return ready, refused

    def reopen(self) -> Sequence[service_pb.ExplainManyRequest]:
        """Returns the requests to send over a new call, after one that broke."""
        entries, self._entries = list(self._entries.values()), {}
        return [self._enter(_Entry(each.key, each.spec, Gathering(model=self._model))) for each in entries]

    def admit(self, event: pb.ExplanationEvent) -> Outcome | None:
        """Takes an event in; returns the outcome where it was a job's last."""
        entry = self._entries.get(event.request_id)
        if entry is None:
            return None
        failure = terminal_error(event)
        if failure is None:
            entry.gathering.add(parse_event(event))
            if event.WhichOneof("event") != "completed":
                return None
        del self._entries[event.request_id]
        if failure is not None:
            return Outcome(key=entry.key, error=failure)
        return Outcome(key=entry.key, explanation=entry.gathering.explanation())

    def _enter(self, entry: _Entry) -> service_pb.ExplainManyRequest:
        self._number += 1
        base = entry.spec.request_id.partition("~")[0]
        entry.spec.request_id = f"{base}~{self._number}"
        self._entries[entry.spec.request_id] = entry
        return service_pb.ExplainManyRequest(spec=entry.spec)
