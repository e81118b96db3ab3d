"""The steps of an explainer: a generator that requests evaluations from the engine, and reports events.

An explainer accesses no model, queue or device. It yields

- requests of `sagittal.engine.requests` (`Evaluate`, `Inspect`); each is answered with its result;
- events of `sagittal.explain.events` (`Progress`, `SaliencyMask`, ...); each is answered with None.

If the budget is spent, the request raises `OutOfBudget`. An explainer that catches it yields its best result so far.
"""

from collections.abc import Callable, Generator
from typing import Any, TypeVar, overload

from sagittal.engine.requests import Evaluate, Inspect, Request, Scores
from sagittal.explain.events import Event

T = TypeVar("T")

Steps = Generator[Request | Event, Any, T]
"""An explainer or a part of one: it yields requests and events, and returns a `T`.

The type of an answer depends on the request, which the type of a generator cannot express. `yield from ask(request)`
has the right type, so that mypy checks whole explainers.
"""


@overload
def ask(request: Evaluate) -> Steps[Scores]: ...


@overload
def ask(request: Inspect[T]) -> Steps[T]: ...


def ask(request: Request) -> Steps[Any]:
    """Yields one request; returns its answer."""
    return (yield request)


def relay(steps: Steps[T], change: Callable[[Request | Event], Request | Event | None]) -> Steps[T]:
    """Forwards everything in both directions, including exceptions; returns what the steps return.

    Args:
        steps: A part of an explainer.
        change: Called with each yielded request or event; returns what is forwarded in its place. None drops an event.
    """
    resume: Callable[[], Request | Event] = lambda: next(steps)  # noqa: E731 - each turn resumes in another way
    while True:
        try:
            item = resume()
        except StopIteration as end:
            result: T = end.value
            return result
        forwarded = change(item)
        if forwarded is None:
            resume = lambda: steps.send(None)  # noqa: E731
            continue
        try:
            answer = yield forwarded
        except Exception as error:  # noqa: BLE001 - the inner generator handles every exception thrown into it
            resume = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            resume = lambda answer=answer: steps.send(answer)  # type: ignore[misc]  # noqa: E731
