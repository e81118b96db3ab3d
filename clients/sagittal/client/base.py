"""Common parts of the synchronous and the asyncio client: requests, answers and the connection's settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypedDict

from google.protobuf.message import Message

from sagittal.client.errors import InvalidRequest
from sagittal.client.methods import Method, MethodLike, pack_method, resolve_method
from sagittal.client.models import Model
from sagittal.client.options import TLS, Options, call_metadata, full_address
from sagittal.client.requests import (
    ExplainOptions,
    build,
    build_spec,
    build_states,
    check_kind,
    check_names,
    model_alone,
)
from sagittal.client.resume import Cursor, Patience
from sagittal.client.tracing import CallSpan, begin_call, rpc_of
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import explanation_service_pb2 as service_pb
from sagittal.v1 import method_pb2

#: Jobs per page of a list.
PAGE = 100


class BaseClient:
    """The settings of a connection; nothing here calls the service."""

    def __init__(self, address: str, *, token: str, tls: TLS | None, options: Options | None) -> None:
        self.address = full_address(address)
        self.options = Options() if options is None else check_kind(options, Options, "options", "Options(...)")
        self._tls = None if tls is None else check_kind(tls, TLS, "tls", "TLS(...), or None")
        self._metadata = call_metadata(self.address, token, tls, self.options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def _call_patience(self) -> Patience:
        return Patience(self.options.retry, self.options.retry.call_seconds)

    def _span(self, request: Message) -> CallSpan:
        return begin_call(rpc_of(request), self.address)

    def _cursor(
        self, request: Message, *, job_id: str = "", after_sequence: int = 0, timeout: float | None = None
    ) -> Cursor:
        # Before the first event, an address where nothing listens fails as fast as for any other call.
        patience, span = self._call_patience(), self._span(request)
        return Cursor(patience, self.address, job_id, after_sequence, span=span, tls=self._tls, timeout=timeout)


def wanted_name(method: MethodLike | None) -> Method | None:
    """Returns the method to look up in the model's catalogue, or None for a typed message."""
    if isinstance(method, str):
        return Method(method)
    return method if isinstance(method, Method) else None


def spec_for(options: ExplainOptions, model: Model | None) -> pb.ExplanationSpec:
    """Returns the request without its image; `model` is the model's description if the method is given by name."""
    method = options.get("method")
    name = wanted_name(method)
    packed: method_pb2.Method | None = None
    if name is not None:
        packed = resolve_method(name, model.methods if model else ())
    elif method is not None:
        packed = pack_method(method)
    return build_spec(packed, **options)


#: Kinds of images of a job.
IMAGE_KINDS: Mapping[str, int] = {
    name.removeprefix("JOB_IMAGE_").lower().replace("_", "-"): number
    for name, number in service_pb.JobImage.items()
    if number
}


def image_request(job_id: str, kind: str, longest: int, mask: int) -> service_pb.GetExplanationImageRequest:
    """Returns the request for an image of a job. Raises InvalidRequest for an unknown kind."""
    if not isinstance(kind, str) or kind not in IMAGE_KINDS:
        raise InvalidRequest(f"got {kind!r}; expected one of {', '.join(IMAGE_KINDS)}", field="kind")
    number = IMAGE_KINDS[kind]
    return build(service_pb.GetExplanationImageRequest, job_id=job_id, image=number, longest=longest, mask=mask)


def list_request(wanted: service_pb.JobFilter, page_token: str) -> service_pb.ListExplanationsRequest:
    """Returns the request of one page of jobs."""
    return build(service_pb.ListExplanationsRequest, filter=wanted, page_token=page_token, page_size=PAGE)


class JobConditions(TypedDict, total=False):
    """Conditions for jobs; all of them must hold."""

    model: str
    """Name of the model."""
    states: Sequence[str] | str
    """Any of "queued", "running", "completed", "failed" and "cancelled"."""
    reason: str
    """Why they failed, such as "JOB_BURIED"."""
    method: str
    """Name of the method, such as "igos++"."""
    request_id: str
    """The caller's key."""
    labels: Mapping[str, str]
    """All of these labels."""
    after: datetime | None
    """Created at this time or later; without a time zone it is local time."""
    before: datetime | None
    """Created before this time."""


def job_filter(conditions: JobConditions) -> service_pb.JobFilter:
    """Returns the API's message for conditions. Raises InvalidRequest for an unknown condition."""
    check_names(conditions, JobConditions.__optional_keys__)
    found = build(
        service_pb.JobFilter,
        "filter",
        model=model_alone(conditions.get("model", "")),
        states=build_states(conditions.get("states", ())),
        failure_reason=conditions.get("reason", ""),
        method=conditions.get("method", ""),
        request_id=conditions.get("request_id", ""),
        labels=conditions.get("labels", {}),
    )
    for key, field in (("after", found.create_after), ("before", found.create_before)):
        time = conditions.get(key)
        if time is not None:
            field.FromDatetime(check_kind(time, datetime, key, "a datetime").astimezone(UTC))
    return found
