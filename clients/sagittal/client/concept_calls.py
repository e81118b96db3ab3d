"""Calls about concept sets: `Client.concepts`, and its twin for asyncio."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import grpc
from google.protobuf.message import Message

from sagittal.client import astreams
from sagittal.client.concept_fits import FitOptions, Fitting, OnProgress
from sagittal.client.concepts import ConceptSet, page_request, parse_concept_set, update_request
from sagittal.client.errors import Unavailable
from sagittal.client.images import ImageLike
from sagittal.client.resume import Cursor
from sagittal.client.streams import let_end
from sagittal.client.tracing import Metadata
from sagittal.v1 import concept_service_pb2 as service_pb
from sagittal.v1 import concept_service_pb2_grpc as service_grpc
from sagittal.v1 import explanation_service_pb2 as jobs_pb
from sagittal.v1 import explanation_service_pb2_grpc as jobs_grpc

#: Time for the word that a job is to be cancelled, in seconds.
_ABANDON_SECONDS = 2.0


def _silent(_progress: object) -> None:
    """Says nothing."""


class _Calls:
    """What both clients have: the stubs, and how a fit is asked for."""

    def __init__(
        self,
        channel: Any,
        metadata: Metadata,
        call: Callable[[Callable[..., Any], Message], Any],
        begin: Callable[[Message], Cursor],
    ) -> None:
        """Takes the connection.

        Args:
            channel: It.
            metadata: Goes with every call.
            call: Makes a call that may be repeated.
            begin: Begins a stream of events.
        """
        self._stub: Any = service_grpc.ConceptServiceStub(channel)
        self._jobs: Any = jobs_grpc.ExplanationServiceStub(channel)
        self._metadata = metadata
        self._call = call
        self._begin = begin

    @contextlib.contextmanager
    def _attempt(self, fitting: Fitting, cursor: Cursor) -> "Iterator[_Attempt]":
        """Makes a call with the events of a fit, which ends with the block; a broken one leaves its wait."""
        attempt = _Attempt(fitting, cursor, self._open(fitting, cursor))
        try:
            yield attempt
            attempt.wait = 0.0 if cursor.ended else cursor.wait_after(None)
        except (grpc.RpcError, Unavailable) as error:
            attempt.wait = fitting.wait_after(cursor, error)
        finally:
            attempt.answers.cancel()

    def _open(self, fitting: Fitting, cursor: Cursor) -> Any:
        """Returns a call with the events of a fit: the one that asks for it, or, once its job is known, a watch."""
        metadata = self._metadata + cursor.span.metadata
        if not cursor.job_id:
            return self._stub.FitConcepts(fitting.requests(), metadata=metadata)
        request = jobs_pb.WatchExplanationRequest(job_id=cursor.job_id, after_sequence=cursor.sequence)
        return self._jobs.WatchExplanation(request, metadata=metadata)

    def _cancel(self, cursor: Cursor) -> Any:
        request = jobs_pb.CancelExplanationRequest(job_id=cursor.job_id)
        metadata = self._metadata + cursor.span.metadata
        return self._jobs.CancelExplanation(request, timeout=_ABANDON_SECONDS, metadata=metadata)


@dataclass(slots=True)
class _Attempt:
    """One call with the events of a fit."""

    fitting: Fitting
    cursor: Cursor
    answers: Any
    """The call, read with `for` or `async for`."""
    wait: float = 0.0
    """Time before the next call, in seconds, once this one has ended."""

    def take(self, answer: Any) -> bool:
        """Takes an answer; returns whether the fit has ended with it."""
        if (event := _event_of(answer)) is not None:
            self.fitting.take(self.cursor, event)
        return self.cursor.ended


def _event_of(answer: Any) -> Any:
    """Returns the job's event that an answer of either call carries; None where it carries none."""
    if isinstance(answer, jobs_pb.WatchExplanationResponse):
        return answer.event
    return answer.job if answer.HasField("job") else None


def _is_owned(fitting: Fitting, cursor: Cursor) -> bool:
    """Whether the job must go with its caller."""
    return bool(cursor.job_id) and not cursor.ended and not fitting.settings.detach


class ConceptCalls(_Calls):
    """Fits, lists, returns, names and deletes concept sets."""

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

        A lost connection is taken up where it broke.

        Args:
            images: Sent one by one as they are taken; none with `dataset`.
            name: Of the set, unique for the model.
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
                    time.sleep(self._follow(fitting, cursor))
            finally:
                if _is_owned(fitting, cursor):
                    with contextlib.suppress(grpc.RpcError, ValueError):  # ValueError: the channel is closed
                        self._cancel(cursor)
        return self.get(name, model=model)

    def _follow(self, fitting: Fitting, cursor: Cursor) -> float:
        """Reads one call; returns the wait before the next one in seconds."""
        with self._attempt(fitting, cursor) as attempt:
            for answer in attempt.answers:
                if attempt.take(answer):
                    let_end(attempt.answers)
                    break
        return attempt.wait

    def list(self, model: str = "") -> Iterator[ConceptSet]:
        """Yields the sets of a model, or of all, without examples."""
        token = ""
        while True:
            answer = self._call(self._stub.ListConceptSets, page_request(model, token))
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
        request = update_request(name, model, rename, merge, mixed)
        return parse_concept_set(self._call(self._stub.UpdateConceptSet, request).concept_set)

    def delete(self, name: str, *, model: str) -> None:
        """Deletes a set."""
        self._call(self._stub.DeleteConceptSet, service_pb.DeleteConceptSetRequest(model=model, name=name))


class AsyncConceptCalls(_Calls):
    """Fits, lists, returns, names and deletes concept sets; each method is that of `ConceptCalls`."""

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
        """Fits a set and returns it. Cancelling the task that waits cancels the job, unless `detach` is set."""
        fitting = Fitting(images, name=name, model=model, targets=targets, options=options, on_progress=on_progress)
        cursor = self._begin(service_pb.FitConceptsRequest())
        with cursor.span:
            try:
                while not cursor.ended:
                    wait = await self._follow(fitting, cursor)
                    await asyncio.sleep(wait)
            finally:
                if _is_owned(fitting, cursor):
                    # Shielded: the task that waits is often being cancelled itself.
                    await asyncio.shield(asyncio.ensure_future(self._abandon(cursor)))
        return await self.get(name, model=model)

    async def _follow(self, fitting: Fitting, cursor: Cursor) -> float:
        """Reads one call; returns the wait before the next one in seconds."""
        with self._attempt(fitting, cursor) as attempt:
            async for answer in attempt.answers:
                if attempt.take(answer):
                    await astreams.let_end(attempt.answers)
                    break
        return attempt.wait

    async def _abandon(self, cursor: Cursor) -> None:
        with contextlib.suppress(grpc.RpcError):
            await self._cancel(cursor)

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
        request = update_request(name, model, rename, merge, mixed)
        return parse_concept_set((await self._call(self._stub.UpdateConceptSet, request)).concept_set)

    async def delete(self, name: str, *, model: str) -> None:
        """Deletes a set."""
        await self._call(self._stub.DeleteConceptSet, service_pb.DeleteConceptSetRequest(model=model, name=name))
