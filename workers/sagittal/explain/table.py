"""The table of methods: one row makes a method servable, batched, cancellable, metered and drawn."""

from collections.abc import Mapping
from dataclasses import dataclass

from sagittal.explain.explainer import Explainer
from sagittal.explain.igos import IGOS
from sagittal.explain.igos_plus import IGOSPlus, IGOSPlusPlus


@dataclass(frozen=True, slots=True)
class Row:
    """A method as callers name it."""

    name: str
    """For people and the command line, such as `igos++`."""
    field: str
    """Field of `sagittal.v1.Method` that carries its parameters; `custom` where it has none."""
    explainer: type[Explainer]


ROWS = (
    Row("igos", "igos", IGOS),
    Row("igos+", "igos_plus", IGOSPlus),
    Row("igos++", "igos_plus_plus", IGOSPlusPlus),
)

EXPLAINERS: Mapping[str, Row] = {row.name: row for row in ROWS}
"""Methods by name."""
