"""The steps of an explainer: a generator that requests evaluations from the engine, and reports events.

An explainer accesses no model, queue or device. It yields

- requests of `sagittal.engine.requests` (`Evaluate`, `Inspect`); each is answered with its result;
- events of `sagittal.explain.events` (`Progress`, `SaliencyMask`, ...); each is answered with None.

If the budget is spent, the request raises `OutOfBudget`. An explainer that catches it yields its best result so far.
"""

from collections.abc import Generator
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
