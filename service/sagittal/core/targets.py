"""The class to explain, by index or by label."""

import difflib

from sagittal.core.errors import FailedPrecondition, InvalidRequest
from sagittal.v1 import explanation_pb2, model_pb2

#: Labels suggested for one that does not exist.
_SUGGESTIONS = 3


def resolve_target(target: explanation_pb2.Target, model: model_pb2.Model, field: str = "target") -> int:
    """Returns the index of the class.

    Raises:
        InvalidRequest: there is no such class, or the label is ambiguous.
        FailedPrecondition: the model has no labels.
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
        raise FailedPrecondition(f"{model.name} has no labels; give the class by `index`", field=field)
    wanted = label.strip().casefold()
    found = [index for index, known in enumerate(model.labels) if known.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        text = f"{field} {label!r} names the classes {', '.join(map(str, found))}; give one of them by `index`"
        raise InvalidRequest(text, field=field)
    raise InvalidRequest(f"{field} {label!r} is no label of {model.name}{_suggestion(wanted, model)}", field=field)


def _suggestion(wanted: str, model: model_pb2.Model) -> str:
    by_folded = {known.casefold(): known for known in model.labels}
    near = [folded for folded in by_folded if wanted and wanted in folded][:_SUGGESTIONS]
    near = near or difflib.get_close_matches(wanted, by_folded, n=_SUGGESTIONS)
    if not near:
        return "; GetModel lists its labels"
    return f"; did you mean {' or '.join(repr(by_folded[folded]) for folded in near)}?"
