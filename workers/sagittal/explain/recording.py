"""What a search asked and was told, in order, so that another attempt can repeat it without the model.

A search is a function of its scores and its seed: one that is told the same scores again does the same again.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sagittal.explain.checkpoints import State, prefixed, within
from sagittal.explain.patches import packed
from sagittal.explain.requests import Scores


class Recording:
    """Scores of patch sets as tensors: one row for each set that was evaluated."""

    def __init__(self, grid: int, restored: State) -> None:
        """Begins with the recording of an earlier attempt, where its checkpoint has one.

        Args:
            grid: Side of the grid of patches.
            restored: State of that checkpoint.
        """
        self._grid = grid
        self._rows: dict[str, Tensor] = within(restored, "scores")
        self._places: dict[tuple[int, bool], int] = {}
        if self._rows:
            sets = [int.from_bytes(bytes(row), "little") for row in self._rows["sets"].tolist()]
            self._note(sets, self._rows["exact"].tolist())

    @property
    def state(self) -> dict[str, Tensor]:
        """The recording, for a checkpoint."""
        return prefixed("scores", self._rows)

    def add(self, sets: Sequence[int], scores: Scores, *, exact: bool) -> None:
        """Takes in the scores of sets."""
        rows = {
            "sets": packed(sets, self._grid),
            "exact": torch.full((len(sets),), exact),
            "target": scores.target,
            "top_class": scores.top_class,
            "top_score": scores.top_score,
        }
        known = self._rows or {name: new[:0] for name, new in rows.items()}
        self._rows = {name: torch.cat([known[name], new.to(known[name])]) for name, new in rows.items()}
        self._note(sets, [exact] * len(sets))

    def scores(self, sets: Sequence[int], *, exact: bool) -> Scores | None:
        """Returns the scores of sets; None where one was not evaluated with this precision."""
        places = [self._places.get((bits, exact), -1) for bits in sets]
        if -1 in places:
            return None
        return Scores(*(self._rows[name][places] for name in ("target", "top_class", "top_score")))

    def _note(self, sets: Iterable[int], exact: Iterable[bool]) -> None:
        for key in zip(sets, exact, strict=True):
            self._places[key] = len(self._places)
