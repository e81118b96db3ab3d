"""Results in a folder that the caller names: each is written when it is measured, and a second run continues."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Value = Mapping[str, Any]

FILE = "results.jsonl"
"""Name of the file of results: one JSON object on each line."""


class OutOfTime(Exception):
    """The time of this run does not suffice for the next measurement."""


@dataclass(slots=True)
class Results:
    """The results of one card. Results of other cards in the same folder are kept, and never mixed with them."""

    folder: Path
    card: str
    until: float = float("inf")
    """Value of `time.time()` at which the run ends."""
    _known: dict[tuple[str, str], Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for line in _lines(self.path):
            if line["card"] == self.card:
                self._known[line["point"], line["key"]] = line["value"]

    @property
    def path(self) -> Path:
        """The file of results."""
        return self.folder / FILE

    def measure(self, point: str, key: str, work: Callable[[], Value], *, seconds: float) -> Value:
        """Returns a result: the stored one, or a new one, which is stored at once.

        Args:
            point: Name of the measured quantity.
            key: Name of one of its measurements.
            work: Measures.
            seconds: Expected time of the measurement.

        Raises:
            OutOfTime: it would end after the run.
        """
        if (known := self.find(point, key)) is not None:
            return known
        if time.time() + seconds > self.until:
            raise OutOfTime(f"{point}, {key}: needs about {seconds:g} s")
        started = time.perf_counter()
        value = {**work(), "measuring_seconds": round(time.perf_counter() - started, 2)}
        self.store(point, key, value)
        return value

    def find(self, point: str, key: str) -> Value | None:
        """Returns a stored result, None if there is none."""
        return self._known.get((point, key))

    def forget(self, point: str, key: str) -> None:
        """Forgets a result, such as one that failed, so that it is measured again."""
        self._known.pop((point, key), None)

    def of(self, point: str) -> Mapping[str, Value]:
        """Returns the stored results of a point by key."""
        return {key: value for (name, key), value in self._known.items() if name == point}

    def failed(self) -> list[tuple[str, str, Value]]:
        """Returns the measurements that failed: point, key and result."""
        return [(point, key, value) for (point, key), value in self._known.items() if "error" in value]

    def store(self, point: str, key: str, value: Value) -> None:
        """Stores a result for good."""
        line = json.dumps({"card": self.card, "point": point, "key": key, "value": value})
        with self.path.open("a") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[point, key] = value
        print(f"{point}: {key}: {json.dumps(value)}", flush=True)


def cards_of(folder: Path) -> list[str]:
    """Returns the names of the cards that have results in a folder."""
    return sorted({line["card"] for line in _lines(folder / FILE)})


def _lines(path: Path) -> list[dict[str, Any]]:
    """Returns the stored lines; one that a killed run left incomplete is skipped."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines
