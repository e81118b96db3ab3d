"""Tables of jobs, models, explanations and outcomes: printed, shown in a notebook, or as a data frame."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sagittal.client.batch import Outcome
from sagittal.client.documents import explanation_row
from sagittal.client.errors import InvalidRequest
from sagittal.client.explanation import Explanation
from sagittal.client.extras import import_extra
from sagittal.client.html import cell_text, table_html
from sagittal.client.jobs import Job
from sagittal.client.models import Model
from sagittal.client.requests import check_several

#: Maximum number of rows shown; the rest are counted.
SHOWN = 50


class Table(Sequence[Mapping[str, Any]]):
    """Rows of figures, one for each job, model, explanation or outcome.

    For example::

        Table(client.models())
        Table(client.list(states="failed")).to_pandas()
    """

    def __init__(self, found: Iterable[Job | Model | Explanation | Outcome]) -> None:
        """Reads everything from `found`, such as the results of `list()` and `models()`.

        Raises:
            InvalidRequest: it yields something else.
        """
        self._rows = tuple(map(_row, check_several(found, "found", "jobs, models, explanations or outcomes")))

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns, those of the first row first."""
        return tuple(dict.fromkeys(name for row in self._rows for name in row))

    def to_pandas(self) -> Any:
        """Returns the rows as a `pandas.DataFrame`. Raises MissingExtra without pandas."""
        return import_extra("pandas").DataFrame(list(self._rows), columns=list(self.columns))

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Table({len(self._rows)} rows: {', '.join(self.columns)})"

    def __str__(self) -> str:
        """The rows in columns of equal width."""
        lines = [tuple(self.columns), *(tuple(map(cell_text, _values(row, self.columns))) for row in self._rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        rest = len(self._rows) - SHOWN
        columns = [name for name in self.columns if any(row.get(name) not in (None, "") for row in self._rows)]
        rows = [_values(row, columns) for row in self._rows[:SHOWN]]
        return table_html(columns, rows, f"and {rest} more" if rest > 0 else f"{len(self._rows)} rows")


def _values(row: Mapping[str, Any], columns: Sequence[str]) -> Sequence[Any]:
    return [row.get(name) for name in columns]


def _row(found: object) -> Mapping[str, Any]:
    for kind, row in _ROWS.items():
        if isinstance(found, kind):
            return row(found)
    text = f"got {type(found).__name__}; expected jobs, models, explanations or outcomes"
    raise InvalidRequest(text, field="found")


def _job(job: Job) -> Mapping[str, Any]:
    return {
        "job_id": job.job_id,
        "state": job.state,
        "model": job.model,
        "model_version": job.model_version,
        "method": job.method,
        "lane": job.lane,
        "created": job.created,
        "ended": job.ended,
        "attempt": job.attempt,
        "worker": job.worker,
        "request_id": job.request_id,
        "failure_reason": job.failure_reason,
        "labels": ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items())),
    }


def _model(model: Model) -> Mapping[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "latest": model.latest,
        "source": model.source,
        "classes": model.classes,
        "input_size": model.preprocessing.input_size,
        "ready_workers": model.ready_workers,
        "supports_gradients": model.supports_gradients,
        "evaluations_per_second": model.evaluations_per_second,
        "digest": model.digest,
    }


def _outcome(outcome: Outcome) -> Mapping[str, Any]:
    found = explanation_row(outcome.explanation) if outcome.explanation is not None else {}
    return {"key": outcome.key} | found | {"error": str(outcome.error) if outcome.error else ""}


_ROWS: Mapping[type, Callable[[Any], Mapping[str, Any]]] = {
    Job: _job,
    Model: _model,
    Explanation: explanation_row,
    Outcome: _outcome,
}
