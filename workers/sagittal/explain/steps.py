"""What an explainer is: a generator that asks the engine, and reports what it finds.

An explainer never touches a model, a queue or a device. It yields

- requests of `sagittal.engine.requests` (`Evaluate`, `Inspect`), each answered with its result;
- events of `sagittal.explain.events` (`Progress`, `SaliencyMask`, ...): findings, answered with None.

If its budget is spent, `OutOfBudget` is raised where it asked: an explainer that catches it yields the best it has.
"""

from collections.abc import Generator
from typing import Any, TypeVar, overload

from sagittal.engine.requests import Evaluate, Inspect, Request, Scores
from sagittal.explain.events import Event

T = TypeVar("T")

Steps = Generator[Request | Event, Any, T]
"""What an explainer is, and each of its parts: it yields requests and events, and returns a `T`.

What a request is answered with depends on the request, which a generator's type cannot say: `yield from ask(request)`
can, and so mypy sees through a whole explainer.
"""


@overload
def ask(request: Evaluate) -> Steps[Scores]: ...


@overload
def ask(request: Inspect[T]) -> Steps[T]: ...


def ask(request: Request) -> Steps[Any]:
    """Yields one request; returns its answer."""
    return (yield request)
