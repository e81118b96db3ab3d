#!/usr/bin/env python3
"""Writes tables of pages in docs from the programs and from what was measured, between their markers.

With --check it writes nothing, and fails if a document is not current.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from sagittal.explain import EXPLAINERS, parameters
from sagittal.explain.parameters import describe
from sagittal.kserve.settings import KServeSettings
from sagittal.page.settings import PageSettings
from sagittal.process.build_info import export_build_info
from sagittal.process.decoder_metrics import DecoderMetrics
from sagittal.process.supervision import SupervisionMetrics
from sagittal.queue.failures import REPLIES, UNKNOWN, UNREACHABLE
from sagittal.queue.metrics import QueueMetrics
from sagittal.queue.settings import QueueSettings
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.settings import ServiceSettings
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.process_metrics import process_up
from sagittal.worker.settings import WorkerSettings

DOCS = Path(__file__).parents[1] / "docs"

#: Unit of a metric, by the end of its name; the first match applies.
UNITS: Mapping[str, str] = {
    "_seconds": "seconds",
    "_bytes": "bytes",
    "_bytes_limit": "bytes",
    "_ratio": "0 to 1",
    "_auc": "0 to 1",
    "_up": "0 or 1",
    "_ready": "0 or 1",
    "_background_running": "0 or 1",
    "": "number",
}


def metrics_of(registry: CollectorRegistry) -> Sequence[Any]:
    """Returns the metrics of a registry in the order of their names, including those of collectors."""
    collectors: Iterable[Any] = registry._collector_to_names
    metrics = [metric for each in collectors for metric in getattr(each, "metrics", [each])]
    return sorted(metrics, key=lambda metric: str(metric._name))


def metric_rows(registry: CollectorRegistry) -> Iterator[str]:
    """Yields a row for each metric of a registry, in the order of their names."""
    for metric in metrics_of(registry):
        name = metric._name + ("_total" if metric._type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
        unit = next(unit for end, unit in UNITS.items() if metric._name.endswith(end))
        yield f"| `{name}` | {metric._type} | {labels} | {unit} | {metric._documentation} |"


def service_registry() -> CollectorRegistry:
    """Returns a registry with the service's metrics."""
    registry = CollectorRegistry()
    ServiceMetrics(registry)
    export_build_info(registry)
    QueueMetrics(registry)
    SupervisionMetrics(registry)
    return registry


def worker_registry() -> CollectorRegistry:
    """Returns a registry with a worker's metrics."""
    registry = CollectorRegistry()
    WorkerMetrics.create(registry)
    export_build_info(registry)
    DecoderMetrics(registry)
    QueueMetrics(registry)
    SupervisionMetrics(registry)
    process_up(registry)
    return registry


def metrics_table(registry: CollectorRegistry) -> str:
    """Returns the table of a registry."""
    return "\n".join(
        ["| name | type | labels | unit | meaning |", "| --- | --- | --- | --- | --- |", *metric_rows(registry)]
    )


def setting_rows(settings: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yields a row for each setting; the queue's, which both programs have, only for the queue itself."""
    for name, field in settings.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            if nested is not QueueSettings:
                yield from setting_rows(nested, f"{prefix}{name.upper()}__")
            continue
        default = "" if name == "worker_name" else _shown(field.get_default(call_default_factory=True))
        text = " ".join((field.description or "").split())
        yield f"| `{prefix}{name.upper()}` | {default} | {text} |"


def _shown(default: object) -> str:
    if default in (None, (), "", {}):
        return "not set"
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    return f"`{json.dumps(to_jsonable_python(default))}`" if not isinstance(default, str | Path) else f"`{default}`"


def settings_table(settings: type[BaseModel], prefix: str) -> str:
    """Returns the table of a class of settings."""
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *setting_rows(settings, prefix)])


def reply_rows() -> Iterator[str]:
    """Yields a row for each error reply of Redis."""
    yield "| reply | meaning | callers get | what it means |"
    yield "| --- | --- | --- | --- |"
    for reply in (*REPLIES, UNREACHABLE, UNKNOWN):
        code = code_pb2.Code.Name(reply.error.code)
        text = reply.text.format(do="run the command")
        again = ", new connection" if reply.reconnects else ""
        yield f"| `{reply.name}` | {reply.meaning.value}{again} | `{code}` | {text} |"


#: Methods by the names that quality.md has for them.
MEASURED: Mapping[str, str] = {
    "iGOS++": "igos++", "iGOS+": "igos+", "I-GOS": "igos", "meaningful perturbation": "meaningful-perturbation",
    "RISE": "rise", "Grad-CAM": "grad-cam", "Integrated Gradients": "integrated-gradients",
    "Excitation BP": "excitation-bp", "occlusion": "occlusion",
}  # fmt: skip


def measured_heatmaps() -> Iterator[tuple[str, Sequence[str]]]:
    """Yields each method with its row of quality.md: images, insertion, deletion, difference, evaluations, seconds."""
    _, _, section = (DOCS / "quality.md").read_text().partition("## Heatmaps\n")
    for line in section.partition("\n## ")[0].splitlines():
        name, *cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if name in MEASURED:
            yield MEASURED[name], cells


def range_rows() -> Iterator[str]:
    """Yields the table of insertion and deletion of each method, as measured."""
    yield "| method | images | raw insertion | raw deletion |"
    yield "| --- | --- | --- | --- |"
    for method, (images, insertion, deletion, *_) in measured_heatmaps():
        yield f"| `{method}` | {images} | {insertion} | {deletion} |"


def parameter_rows() -> Iterator[str]:
    """Yields a section for each method with its names and its parameters."""
    for row in EXPLAINERS.values():
        yield f"### {row.name}\n\n{row.explainer.summary}.\n"
        names = [f"`{each}`" for each in row.aliases]
        also = f" Also named {', '.join(names)}." if names else ""
        carried = "the field `custom`" if row.field == "custom" else f"the field `{row.field}`"
        yield f"In Python `sagittal.explain.{row.explainer.__name__}`; in a request {carried} of `Method`.{also}\n"
        found = list(parameters(row.explainer))
        if not found:
            yield "It has no parameters.\n"
            continue
        yield "| parameter | type | default | values | meaning |"
        yield "| --- | --- | --- | --- | --- |"
        for each in found:
            values = ", ".join(f"`{choice}`" for choice in each.bounds.choices) or describe(each.bounds)
            default = "none" if each.default is None else f"`{json.dumps(each.default)}`"
            yield f"| `{each.name}` | {each.type} | {default} | {values} | {each.bounds.summary} |"
        yield ""


def tables() -> Mapping[tuple[str, str], str]:
    """Returns each table by its document and the name in its markers."""
    return {
        ("guarantees.md", "replies"): "\n".join(reply_rows()),
        ("kserve.md", "settings"): settings_table(KServeSettings, "SAGITTAL_KSERVE_"),
        ("metrics.md", "service"): metrics_table(service_registry()),
        ("metrics.md", "worker"): metrics_table(worker_registry()),
        ("operations.md", "service"): settings_table(ServiceSettings, "SAGITTAL_"),
        ("operations.md", "worker"): settings_table(WorkerSettings, "SAGITTAL_"),
        ("operations.md", "queue"): settings_table(QueueSettings, "SAGITTAL_QUEUE__"),
        ("page.md", "settings"): settings_table(PageSettings, "SAGITTAL_PAGE_"),
        ("reading-an-explanation.md", "ranges"): "\n".join(range_rows()),
        ("method-reference.md", "parameters"): "\n".join(parameter_rows()),
    }


def filled(document: str, name: str, table: str) -> str:
    """Returns the document with the table between its markers. Raises ValueError if there are none."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = document.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document has no markers for the table {name}: add {begin.strip()} and {end}")
    return f"{before}{begin}\n{table}\n\n{end}{after}"


def stale() -> Mapping[Path, str]:
    """Returns the new content of the documents that are not current."""
    wanted: dict[Path, str] = {}
    for (document, name), table in tables().items():
        path = DOCS / document
        wanted[path] = filled(wanted.get(path, path.read_text()), name, table)
    return {path: text for path, text in wanted.items() if path.read_text() != text}


def main() -> int:
    """Writes the documents, or with --check reports which are not current."""
    documents = stale()
    if "--check" in sys.argv[1:]:
        sys.stderr.write("".join(f"docs/{path.name} is not current: run make reference\n" for path in documents))
        return 1 if documents else 0
    for path, text in documents.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
