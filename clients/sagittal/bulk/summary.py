"""A page that summarises a batch: one HTML file without scripts, which needs no network."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from sagittal.bulk.failures import read_failures
from sagittal.bulk.output import naming_deleted
from sagittal.bulk.runs import Plan
from sagittal.bulk.shards import read_column
from sagittal.client.batches import Batch
from sagittal.client.extras import import_extra

#: Figures whose distribution is shown, with the direction that is good.
_FIGURES: Mapping[str, str] = {
    "score": "",
    "insertion": "high is good",
    "deletion": "low is good",
    "relative_insertion": "high is good",
    "relative_deletion": "low is good",
    "evaluations": "",
    "seconds": "",
}

#: Values of a figure that quantiles are computed from: every n-th, so that a million rows take bounded memory.
_MOST_VALUES = 200_000

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #eee; } th, td { border-color: #444; } }
"""


def write_summary(directory: Path, plan: Plan, batch: Batch | None) -> Path:
    """Writes `summary.html` of a directory and returns its path.

    Args:
        directory: The directory with the results.
        plan: Its batch.
        batch: The service's record of the batch, if it is known.

    Raises:
        OutputError: the directory was deleted.
    """
    figures = Figures(directory)
    parts = [
        f"<h1>{escape(plan.name)}</h1>",
        _facts(plan, batch, figures.rows),
        "<h2>Figures</h2>",
        _table(("figure", "mean", "10 %", "median", "90 %", ""), figures.lines()),
        "<h2>Classes</h2>",
        _table(("explained class", "images"), [(name or "(none)", f"{n:,}") for name, n in figures.classes()]),
        "<h2>Warnings</h2>",
        _table(("warning", "images"), [(name, f"{n:,}") for name, n in figures.warnings()]),
        "<h2>Failures</h2>",
        _table(("reason", "images", "first key", "message"), list(_failures(directory))),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(plan.name)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    path, temporary = directory / "summary.html", directory / "summary.tmp"
    with naming_deleted(directory):
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    return path


class Figures:
    """The figures of all shards of a directory, read one shard at a time."""

    def __init__(self, directory: Path) -> None:
        self._parquet = import_extra("pyarrow.parquet", "bulk")
        self._shards = sorted(directory.glob("figures-*.parquet"))
        self.rows = sum(self._parquet.read_metadata(shard).num_rows for shard in self._shards)

    def lines(self) -> Iterator[tuple[str, ...]]:
        """Yields a line with mean and quantiles for each figure that has any value."""
        numpy = import_extra("numpy")
        for name, good in _FIGURES.items():
            values = numpy.asarray(self._values(name), dtype=float)
            if values.size:
                quantiles = numpy.quantile(values, [0.1, 0.5, 0.9])
                yield name, *(f"{number:.4g}" for number in (values.mean(), *quantiles)), good

    def classes(self) -> Sequence[tuple[str, int]]:
        """Returns the most frequent explained classes."""
        return self._count("target").most_common(20)

    def warnings(self) -> Sequence[tuple[str, int]]:
        """Returns how many explanations have each warning."""
        counts: Counter[str] = Counter()
        for text, number in self._count("warnings").items():
            for name in filter(None, text.split(", ")):
                counts[name] += number
        return counts.most_common()

    def _values(self, name: str) -> list[float]:
        step = self.rows // _MOST_VALUES + 1
        return [value for each in self._columns(name) for value in each[::step] if value is not None]

    def _count(self, name: str) -> Counter[str]:
        counts: Counter[str] = Counter()
        for each in self._columns(name):
            counts.update(each)
        return counts

    def _columns(self, name: str) -> Iterator[list[Any]]:
        for shard in self._shards:
            yield read_column(shard, name)


def _facts(plan: Plan, batch: Batch | None, rows: int) -> str:
    facts = [("manifest", plan.manifest), ("completed images", f"{rows:,}")]
    facts += [
        (name.replace("_", " "), _option(value)) for name, value in plan.options.items() if value or name == "seed"
    ]
    if batch is not None:
        facts.append(("model evaluations", f"{batch.spent.evaluations:,}"))
        facts.append(("time on workers", f"{batch.spent.worker_seconds:,.1f} s"))
        facts.append(("failed images", f"{batch.counts.failed:,}"))
    facts.append(("written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
    return _table(("batch", ""), facts)


def _option(value: object) -> str:
    """Returns an option of a batch as text; of a method its name and the parameters that were given."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(str(text) if name == "name" else f"{name} {text}" for name, text in value.items())


def _failures(directory: Path) -> Iterator[tuple[str, ...]]:
    counts: Counter[str] = Counter()
    first: dict[str, Mapping[str, Any]] = {}
    for each in read_failures(directory):
        counts[each["reason"]] += 1
        first.setdefault(each["reason"], each)
    for reason, number in counts.most_common():
        yield reason, f"{number:,}", first[reason]["key"], first[reason]["message"]


def _table(head: Sequence[str], lines: Any) -> str:
    rows = [f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in line)}</tr>" for line in lines]
    if not rows:
        return "<p>None.</p>"
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{''.join(rows)}</table>"
