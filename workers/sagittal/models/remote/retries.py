"""When a call to a model server is attempted again: a few times, later each time, and never past the budget."""

import random
import threading
from dataclasses import dataclass, field

FIRST_PAUSE = 0.1
"""Longest pause before the second attempt, in seconds; it doubles with each."""

LONGEST_PAUSE = 2.0
"""Longest pause at all, in seconds."""

EARNED = 0.1
"""What a success gives back."""


@dataclass(slots=True)
class RetryBudget:
    """What failures use up and successes give back. Safe from any thread.

    While it is empty nothing is attempted again, so that a server in trouble gets no more calls than without retries.
    """

    most: float
    """Failures in a row that empty it."""
    _left: float = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._left = self.most

    def succeed(self) -> None:
        """Gives back a tenth."""
        with self._lock:
            self._left = min(self.most, self._left + EARNED)

    def fail(self) -> bool:
        """Takes one away; whether another attempt may be made."""
        with self._lock:
            allowed = self._left >= 1
            self._left = max(0.0, self._left - 1)
            return allowed


def pause_before(attempt: int) -> float:
    """Returns how long to wait before an attempt, in seconds: at random, so that callers do not come back together."""
    return random.uniform(0.5, 1.0) * min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 2))  # noqa: S311 - no secret
