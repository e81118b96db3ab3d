"""Calls about concept sets: `Client.concepts`, and its twin for asyncio."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Unpack

import grpc
from google.protobuf.message import Message

from sagittal.client.concepts import (
    ConceptSet,
    FitOptions,
    OnProgress,
    changes,
    fit_requests,
    parse_concept_set,
    parse_progress,
)
from sagittal.client.errors import InternalError, JobCancelled, SagittalError, from_rpc_error, from_status
from sagittal.client.images import ImageLike
from sagittal.client.tracing import Metadata
from sagittal.v1 import concept_service_pb2 as service_pb
from sagittal.v1 import concept_service_pb2_grpc as service_grpc

#: Sets on a page.
_PAGE = 100


def _silent(_progress: object) -> None:
    """Says nothing."""


class ConceptCalls:
    """Fits, lists, returns, names and deletes concept sets."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        metadata: Metadata,
        call: Callable[[Callable[..., Any], Message], Any],
    ) -> None:
        self._stub = service_grpc.ConceptServiceStub(channel)
        self._address = address
        self._metadata = metadata
        self._call = call

    def fit(
        self,
        images: Iterable[ImageLike] = (),
        *,
        name: str,
        model: str,
        targets: Sequence[int | str],
        on_progress: OnProgress = _silent,
        **options: Unpack[FitOptions],
    ) -> ConceptSet:
        """Fits a set and returns it. Interrupting it cancels the job, unless `detach` is set.

        Args:
            images: Sent one by one as they are taken; none with `dataset`.
            name: Of the set, unique for the model.
            model: Name of a registered model.
            targets: Classes, by index or label, whose outputs the concepts predict.
            on_progress: Called with each step.
            options: See `FitOptions`.
        """
        answers = self._stub.FitConcepts(fit_requests(images, name, model, targets, options), metadata=self._metadata)
        try:
            for answer in answers:
                found = _take(answer, on_progress)
                if found is not None:
                    return found
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address) from error
        finally:
            answers.cancel()
        raise InternalError("the fit ended without its set")

    def list(self, model: str = "") -> Iterator[ConceptSet]:
        """Yields the sets of a model, or of all, without examples."""
        token = ""
        while True:
            request = service_pb.ListConceptSetsRequest(model=model, page_size=_PAGE, page_token=token)
            answer = self._call(self._stub.ListConceptSets, request)
            yield from map(parse_concept_set, answer.concept_sets)
            token = answer.next_page_token
            if not token:
                return

    def get(self, name: str, *, model: str) -> ConceptSet:
        """Returns a set, whole."""
        request = service_pb.GetConceptSetRequest(model=model, name=name)
        return parse_concept_set(self._call(self._stub.GetConceptSet, request).concept_set)

    def update(
        self,
        name: str,
        *,
        model: str,
        rename: dict[int, str] | None = None,
        merge: dict[int, int] | None = None,
        mixed: dict[int, bool] | None = None,
    ) -> ConceptSet:
        """Names x-features, shows one together with another, marks them as mixed; returns the set."""
        made = changes(rename=rename, merge=merge, mixed=mixed)
        request = service_pb.UpdateConceptSetRequest(model=model, name=name, changes=made)
        return parse_concept_set(self._call(self._stub.UpdateConceptSet, request).concept_set)

    def delete(self, name: str, *, model: str) -> None:
        """Deletes a set."""
        self._call(self._stub.DeleteConceptSet, service_pb.DeleteConceptSetRequest(model=model, name=name))


class AsyncConceptCalls:
    """Fits, lists, returns, names and deletes concept sets."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        metadata: Metadata,
        call: Callable[[Callable[..., Any], Message], Awaitable[Any]],
    ) -> None:
        self._stub: Any = service_grpc.ConceptServiceStub(channel)
        self._address = address
        self._metadata = metadata
        self._call = call

    async def fit(
        self,
        images: Iterable[ImageLike] = (),
        *,
        name: str,
        model: str,
        targets: Sequence[int | str],
        on_progress: OnProgress = _silent,
        **options: Unpack[FitOptions],
    ) -> ConceptSet:
        """Fits a set and returns it, as `ConceptCalls.fit` does."""
        answers = self._stub.FitConcepts(fit_requests(images, name, model, targets, options), metadata=self._metadata)
        try:
            async for answer in answers:
                found = _take(answer, on_progress)
                if found is not None:
                    return found
        except grpc.RpcError as error:
            raise from_rpc_error(error, address=self._address) from error
        finally:
            answers.cancel()
        raise InternalError("the fit ended without its set")

    async def list(self, model: str = "") -> AsyncIterator[ConceptSet]:
        """Yields the sets of a model, or of all, without examples."""
        token = ""
        while True:
            request = service_pb.ListConceptSetsRequest(model=model, page_size=_PAGE, page_token=token)
            answer = await self._call(self._stub.ListConceptSets, request)
            for message in answer.concept_sets:
                yield parse_concept_set(message)
            token = answer.next_page_token
            if not token:
                return

    async def get(self, name: str, *, model: str) -> ConceptSet:
        """Returns a set, whole."""
        request = service_pb.GetConceptSetRequest(model=model, name=name)
        return parse_concept_set((await self._call(self._stub.GetConceptSet, request)).concept_set)

    async def update(
        self,
        name: str,
        *,
        model: str,
        rename: dict[int, str] | None = None,
        merge: dict[int, int] | None = None,
        mixed: dict[int, bool] | None = None,
    ) -> ConceptSet:
        """Names x-features, shows one together with another, marks them as mixed; returns the set."""
        made = changes(rename=rename, merge=merge, mixed=mixed)
        request = service_pb.UpdateConceptSetRequest(model=model, name=name, changes=made)
        return parse_concept_set((await self._call(self._stub.UpdateConceptSet, request)).concept_set)

    async def delete(self, name: str, *, model: str) -> None:
        """Deletes a set."""
        await self._call(self._stub.DeleteConceptSet, service_pb.DeleteConceptSetRequest(model=model, name=name))


def _take(answer: service_pb.FitConceptsResponse, on_progress: OnProgress) -> ConceptSet | None:
    """Tells progress, raises the job's error, and returns the set once it is there."""
    if answer.HasField("concept_set"):
        return parse_concept_set(answer.concept_set)
    error = _error(answer)
    if error is not None:
        raise error
    progress = parse_progress(answer)
    if progress is not None:
        on_progress(progress)
    return None


def _error(answer: service_pb.FitConceptsResponse) -> SagittalError | None:
    event = answer.job
    match event.WhichOneof("event"):
        case "failed":
            return from_status(event.failed, job_id=event.job_id)
        case "cancelled":
            return JobCancelled(f"the fit was cancelled: {event.cancelled.reason}", job_id=event.job_id)
    return None
