"""Resolves the class of a request, by index or label."""

import difflib
from collections.abc import Iterable, Sequence
from heapq import nlargest
from itertools import islice

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.core.methods import LOADING_SECONDS
from sagittal.core.text import EXCERPT, shown
from sagittal.v1 import explanation_pb2, model_pb2

#: Labels suggested for an unknown one.
_SUGGESTIONS = 3

#: Labels that are compared letter by letter with an unknown one.
_CANDIDATES = 128

#: Classes of one label that an error lists.
_CLASSES_SHOWN = 12


def is_described(model: model_pb2.Model) -> bool:
    """Returns whether a worker has loaded the model; only then are its methods, labels and classes known."""
    return bool(model.methods)


def resolve_target(target: explanation_pb2.Target, model: model_pb2.Model, field: str = "target") -> int:
    """Returns the index of the class.

    Raises:
        InvalidRequest: the class does not exist, or the label is ambiguous.
        FailedPrecondition: the model has no labels, or no worker has loaded it yet.
    """
    chosen = target.WhichOneof("target")
    if chosen is None:
        raise InvalidRequest(
            f"{field} is empty; give `index` or `label`, or leave it out for the top class", field=field
        )
    if chosen == "label":
        return _by_label(target.label, model, f"{field}.label")
    classes = model.classes or len(model.labels)
    if classes and target.index >= classes:
        text = f"{field}.index is {target.index}; {model.name} has {classes:,} classes: give 0 to {classes - 1}"
        raise InvalidRequest(text, field=f"{field}.index")
    return int(target.index)


def _by_label(label: str, model: model_pb2.Model, field: str) -> int:
    if not model.labels:
        if is_described(model):
            raise FailedPrecondition(f"{model.name} has no labels; give the class by `index`", field=field)
        text = f"{model.name} is not loaded by any worker yet, so its labels are unknown; give the class by `index`"
        raise FailedPrecondition(f"{text}, or try again later", field=field, retry_after=LOADING_SECONDS)
    wanted = label.strip().casefold()
    found = [index for index, known in enumerate(model.labels) if known.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(map(str, found[:_CLASSES_SHOWN]))
        text = f"{field} {shown(label)} names the classes {some}; give one of them by `index`"
        raise InvalidRequest(text, field=field)
    raise InvalidRequest(
        f"{field} {shown(label)} is not a label of {model.name}{_suggestion(wanted, model)}", field=field
    )


def _suggestion(wanted: str, model: model_pb2.Model) -> str:
    near = _near(wanted, model.labels) if len(wanted) <= EXCERPT else []
    if not near:
        return "; GetModel lists its labels"
    return f"; did you mean {' or '.join(map(shown, near))}?"


def _near(wanted: str, labels: Iterable[str]) -> Sequence[str]:
    """Returns a few labels that contain the wanted text or are spelt like it, in bounded time."""
    by_folded = {known.casefold(): known for known in labels}
    holding = islice((folded for folded in by_folded if wanted and wanted in folded), _SUGGESTIONS)
    near = list(holding) or difflib.get_close_matches(wanted, _alike(wanted, by_folded), n=_SUGGESTIONS)
    return [by_folded[folded] for folded in near]


def _alike(wanted: str, candidates: Iterable[str]) -> Sequence[str]:
    """Returns candidates that may be a misspelling, by length and letters, most likely first."""
    letters = set(wanted)
    similar = [folded for folded in candidates if abs(len(folded) - len(wanted)) <= len(wanted) // 2]
    return nlargest(_CANDIDATES, similar, key=lambda folded: len(letters.intersection(folded)) - len(folded) / EXCERPT)
