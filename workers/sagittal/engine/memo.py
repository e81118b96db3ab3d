"""Scores of masked images that an engine has evaluated before, for any job.

A search that is repeated on the same image and baseline requests many of the same masked images: an attention graph
after sufficient sets, or a search for another class. The probabilities of all classes are stored, so that the target
does not matter.

A stored result is the result that the model would return again. It is bit-identical if the model's rows are equal in
every batch on this machine (see `sagittal.models.row_equality`); otherwise it agrees within rounding. Kernels may round
differently in batches of other sizes, so the key of a row includes how it is computed: rows that share batches in whole
units (see `Engine.unit`) have keys of their own; the rows beyond them, which run as one small batch, have one joint
key. Known rows never leave such a rest.
"""

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sagittal.engine.requests import Evaluate, Scores, Subject

MOST_CELLS = 64 * 64
"""Maximum number of cells of stored masks: larger masks are expensive to hash and rarely recur."""

IMAGES_KNOWN = 256
"""Number of images and baselines whose digests are kept; the tensors themselves are not."""

ROW_OVERHEAD = 256
"""Approximate memory of a row in addition to its probabilities, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Recollection:
    """A request with the known part of its answer."""

    request: Evaluate
    keys: Sequence[bytes]
    """Key of each row."""
    known: Mapping[int, Tensor]
    """Probabilities (classes,) of the known rows, by row index."""
    rest: Evaluate | None
    """The rows that must be evaluated, in order, with all probabilities; None if there are none."""

    def complete(self, scores: Scores | None) -> Scores:
        """Returns the answer to the whole request, given the scores of the rest."""
        if not self.known and scores is not None:
            return scores if self.request.probabilities else replace(scores, probabilities=None)
        evaluated = iter(() if scores is None else _rows_of(scores))
        rows = [self.known[row] if row in self.known else next(evaluated) for row in range(len(self.keys))]
        return _scores(torch.stack(rows).to(self.request.masks.device), self.request)

    def evaluated(self, scores: Scores) -> Mapping[bytes, Tensor]:
        """Returns the probabilities of the rest by key."""
        rows = (row for row in range(len(self.keys)) if row not in self.known)
        return {self.keys[row]: each for row, each in zip(rows, _rows_of(scores), strict=True)}


class ScoreMemo:
    """Probabilities by masked image, for one model on one device; the least recently used are evicted first."""

    def __init__(self, most_bytes: int, *, reduced: bool = False) -> None:
        """Constructs an empty memo.

        Args:
            most_bytes: Approximate maximum of memory.
            reduced: Whether the model runs in reduced precision for requests that are not exact.
        """
        self._most = most_bytes
        self._reduced = reduced
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()
        self._digests: OrderedDict[int, tuple[weakref.ref[Tensor], bytes]] = OrderedDict()
        self.bytes = 0
        """Memory of the stored rows."""

    def recall(self, request: Evaluate, unit: int) -> Recollection | None:
        """Returns the known part of a request; None if requests of its kind are not stored."""
        if request.gradient or request.noise > 0 or request.masks[0].numel() > MOST_CELLS:
            return None
        keys, whole = self._keys(request, unit), len(request.masks) - len(request.masks) % unit
        known = {row: self._rows[key] for row, key in enumerate(keys) if key in self._rows}
        for row in known:
            self._rows.move_to_end(keys[row])
        known = _in_units(known, whole, len(keys), unit)
        missing = [row for row in range(len(keys)) if row not in known]
        masks = request.masks if not known else request.masks[missing]
        return Recollection(
            request, keys, known, replace(request, masks=masks, probabilities=True) if missing else None
        )

    def remember(self, recollection: Recollection, scores: Scores) -> None:
        """Stores the evaluated part of a request."""
        for key, probabilities in recollection.evaluated(scores).items():
            if key not in self._rows:
                # A copy: a row of a batch would keep the whole batch alive.
                self._rows[key] = probabilities.clone()
                self.bytes += _size(probabilities)
        while self.bytes > self._most:
            _, forgotten = self._rows.popitem(last=False)
            self.bytes -= _size(forgotten)

    def _keys(self, request: Evaluate, unit: int) -> Sequence[bytes]:
        """Returns keys that distinguish the evaluation of each row from evaluations that are computed differently."""
        masks = request.masks.detach().to("cpu", torch.float32).contiguous()
        exact = request.exact or not self._reduced
        said = (tuple(masks.shape[1:]), request.upsampling.value, request.alterations, exact, unit)
        common = repr(said).encode() + self._of_subject(request.subject)
        rows = [row.numpy().tobytes() for row in masks]
        whole = len(rows) - len(rows) % unit
        rest = b"".join(rows[whole:])
        beyond = [f"{index} of {len(rows) - whole}".encode() + rest for index in range(len(rows) - whole)]
        return [hashlib.blake2b(common + row, digest_size=32).digest() for row in rows[:whole] + beyond]

    def _of_subject(self, subject: Subject) -> bytes:
        """Returns a digest of the image and the baseline. The target is not part of it."""
        return self._of_image(subject.image) + self._of_image(subject.baseline)

    def _of_image(self, image: Tensor) -> bytes:
        of, known = self._digests.get(id(image), (None, b""))
        if of is not None and of() is image:
            return known
        content = image.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.blake2b(repr(tuple(content.shape)).encode(), digest_size=32)
        digest.update(content.numpy().tobytes())
        self._digests[id(image)] = (weakref.ref(image), digest.digest())
        while len(self._digests) > IMAGES_KNOWN:
            self._digests.popitem(last=False)
        return digest.digest()


def _in_units(known: dict[int, Tensor], whole: int, rows: int, unit: int) -> dict[int, Tensor]:
    """Returns the known rows without those that are evaluated again, so that whole units are evaluated."""
    tail = range(whole, rows)
    kept = {row: each for row, each in known.items() if row < whole or all(beyond in known for beyond in tail)}
    missing = whole - sum(row < whole for row in kept)
    again = [row for row in kept if row < whole][: -missing % unit]
    return {row: each for row, each in kept.items() if row not in again}


def _rows_of(scores: Scores) -> Sequence[Tensor]:
    if scores.probabilities is None:
        raise ValueError("the scores have no probabilities; the rest of a request must ask for them")
    return scores.probabilities.cpu().unbind(0)


def _scores(probabilities: Tensor, request: Evaluate) -> Scores:
    """Returns the scores that an evaluator would return for these probabilities (n, classes)."""
    top_scores, top_classes = probabilities.max(-1)
    target = request.subject.target
    of_target = probabilities.amax(-1) if target is None else probabilities[:, target]
    return Scores(of_target, top_classes, top_scores, None, probabilities if request.probabilities else None)


def _size(row: Tensor) -> int:
    return row.nbytes + ROW_OVERHEAD
