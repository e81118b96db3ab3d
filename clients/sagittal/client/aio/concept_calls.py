"""Calls about concept sets: `AsyncClient.concepts`."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Unpack

import grpc
from google.protobuf.message import Message

from sagittal.client.aio.concurrency import ChannelClosed, let_end, sleep, to_the_end
from sagittal.client.aio.streams import wait_after
from sagittal.client.concepts import (
    ConceptSet,
    FitOptions,
    Fitting,
    OnProgress,
    named_set,
    page_request,
    parse_concept_set,
    update_request,
)
from sagittal.client.errors import ConnectionFailed, Unavailable
from sagittal.client.images import ImageLike
from sagittal.client.requests import build
from sagittal.client.resume import Cursor
from sagittal.client.tracing import Metadata
from sagittal.v1 import concept_service_pb2 as service_pb
from sagittal.v1 import concept_service_pb2_grpc as service_grpc
from sagittal.v1 import explanation_service_pb2 as jobs_pb
from sagittal.v1 import explanation_service_pb2_grpc as jobs_grpc

#: Timeout of cancelling a job, in seconds.
_ABANDON_SECONDS = 2.0


class AsyncConceptCalls:
    """Fits, lists, returns, updates and deletes concept sets."""

    def __init__(
        self,
        channel: Any,
        metadata: Metadata,
        call: Callable[[Callable[..., Any], Message], Any],
        begin: Callable[[Message], Cursor],
    ) -> None:
        """Takes the connection.

        Args:
            channel: The channel.
            metadata: Metadata of every call.
            call: Makes an idempotent call with retries.
            begin: Starts a stream of events.
        """
        self._stub: Any = service_grpc.ConceptServiceStub(channel)
        self._jobs: Any = jobs_grpc.ExplanationServiceStub(channel)
        self._metadata = metadata
        self._call = call
        self._begin = begin

    async def fit(
        self,
        images: Iterable[ImageLike] = (),
        *,
        name: str,
        model: str,
        targets: Sequence[int | str],
        on_progress: OnProgress | None = None,
        **options: Unpack[FitOptions],
    ) -> ConceptSet:
        """Fits a set and returns it. Interrupting or cancelling the caller cancels the job, unless `detach` is set.

        A lost connection is resumed.

        Args:
            images: Sent one by one as they are read; none with `dataset`.
            name: Name of the set, unique for the model.
            model: Name of a registered model.
            targets: Classes, by index or label, whose outputs the concepts predict.
            on_progress: Called with each step.
            options: See `FitOptions`.
        """
        fitting = Fitting(images, name=name, model=model, targets=targets, options=options, on_progress=on_progress)
        cursor = self._begin(service_pb.FitConceptsRequest())
        with cursor.span:
            try:
                while not cursor.ended:
                    await sleep(await self._follow(fitting, cursor))
            finally:
                if fitting.owns_job(cursor):
                    await to_the_end(self._abandon, cursor)
        return await self.get(name, model=model)

    async def list(self, model: str = "") -> AsyncIterator[ConceptSet]:
        """Yields the sets of a model, or of all, without examples."""
        token = ""
        while True:
            answer = await self._call(self._stub.ListConceptSets, page_request(model, token))
            for message in answer.concept_sets:
                yield parse_concept_set(message)
            token = answer.next_page_token
            if not token:
                return

    async def get(self, name: str, *, model: str) -> ConceptSet:
        """Returns a complete set."""
        request = build(service_pb.GetConceptSetRequest, **named_set(name, model))
        answer = await self._call(self._stub.GetConceptSet, request)
        return parse_concept_set(answer.concept_set)

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
        request = update_request(name, model, rename, merge, mixed)
        answer = await self._call(self._stub.UpdateConceptSet, request)
        return parse_concept_set(answer.concept_set)

    async def delete(self, name: str, *, model: str) -> None:
        """Deletes a set."""
        request = build(service_pb.DeleteConceptSetRequest, **named_set(name, model))
        await self._call(self._stub.DeleteConceptSet, request)

    async def _follow(self, fitting: Fitting, cursor: Cursor) -> float:
        """Reads one call; returns the pause before the next one in seconds."""
        try:
            call = self._open(fitting, cursor)
        except ChannelClosed as error:
            raise ConnectionFailed("this client is closed; make another", job_id=cursor.job_id) from error
        try:
            async for answer in call:
                fitting.take(cursor, answer)
                if cursor.ended:
                    await let_end(call)
                    return 0.0
            return await wait_after(cursor, None)
        except (grpc.RpcError, Unavailable) as error:
            fitting.check_repeatable(cursor, error)
            return await wait_after(cursor, error)
        finally:
            call.cancel()

    def _open(self, fitting: Fitting, cursor: Cursor) -> Any:
        """Returns a call with the events of a fit: its request, or, once its job is known, a watch."""
        metadata = self._metadata + cursor.span.metadata
        if not cursor.job_id:
            return self._stub.FitConcepts(fitting.requests(), metadata=metadata)
        request = jobs_pb.WatchExplanationRequest(job_id=cursor.job_id, after_sequence=cursor.sequence)
        return self._jobs.WatchExplanation(request, metadata=metadata)

    async def _abandon(self, cursor: Cursor) -> None:
        """Cancels a job whose caller left, in bounded time."""
        request = jobs_pb.CancelExplanationRequest(job_id=cursor.job_id)
        metadata = self._metadata + cursor.span.metadata
        with contextlib.suppress(grpc.RpcError, ChannelClosed):
            await self._jobs.CancelExplanation(request, timeout=_ABANDON_SECONDS, metadata=metadata)
