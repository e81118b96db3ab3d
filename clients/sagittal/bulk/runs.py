"""Runs a batch from a manifest to a directory, and continues it after any interruption."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sagittal.bulk.manifests import Manifest, open_manifest
from sagittal.bulk.output import Keys, Output, OutputError
from sagittal.client import Client, Method
from sagittal.client.batches import BatchItem, BatchResult
from sagittal.client.errors import InvalidRequest, NotFound

#: File of a directory that describes its batch.
DESCRIPTION = "batch.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The record in a directory of results with which its batch can be continued."""

    name: str
    """Name of the batch."""
    manifest: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options common to all items, as `Client.batches.create` takes them."""

    def arguments(self) -> dict[str, Any]:
        """Returns the options with their method."""
        options = dict(self.options)
        if isinstance(described := options.get("method"), Mapping):
            options["method"] = Method(**described)
        return options

    @classmethod
    def of(cls, directory: Path) -> "Plan | None":
        """Returns the plan of a directory; None if it has none."""
        path = directory / DESCRIPTION
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise OutputError(f"{path} cannot be read: {error}; choose another directory", field="out") from error

    def check(self, directory: Path) -> None:
        """Raises OutputError if the directory has another plan."""
        before = Plan.of(directory)
        if before is not None and before != self:
            text = f"{directory} has results of the batch {before.name!r} with other options or another manifest"
            raise OutputError(f"{text}: choose another directory, or run `sagittal batch resume`", field="out")

    def save(self, directory: Path) -> None:
        """Writes the plan."""
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{DESCRIPTION}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        temporary.replace(directory / DESCRIPTION)


def new_name(directory: Path) -> str:
    """Returns a name for the batch of a directory."""
    stem = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in directory.resolve().name)
    return f"{stem[:100].strip('-') or 'batch'}-{secrets.token_hex(4)}"


@dataclass(slots=True, kw_only=True)
class Progress:
    """The progress of a run."""

    total: int | None
    """Number of items; None if it is unknown."""
    completed: int = 0
    """Items with a row, those of earlier runs included."""
    failed: int = 0
    new: int = 0
    """Results of this run."""
    repeated: int = 0
    """Rows of the manifest whose key came before."""
    waiting: str = ""
    """Why items wait; empty if they do not."""
    began: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> int:
        """Items with a result."""
        return self.completed + self.failed

    @property
    def rate(self) -> float:
        """Results of this run per second."""
        return self.new / max(time.monotonic() - self.began, 1e-9)

    @property
    def remaining(self) -> float | None:
        """Seconds until the end at this rate; None if unknown."""
        if self.total is None or not self.new:
            return None
        return max(self.total - self.repeated - self.ended, 0) / self.rate


OnProgress = Callable[[Progress], None]


def run(
    client: Client,
    directory: str | os.PathLike[str],
    plan: Plan,
    *,
    manifest: Manifest | None = None,
    in_flight: int = 128,
    readers: int = 16,
    on_progress: OnProgress = lambda _: None,
) -> Progress:
    """Runs a batch to its end; items with a row or a failure in the directory are not sent again.

    Args:
        client: The connection.
        directory: Where results go.
        plan: The batch.
        manifest: Its images; by default, those that the plan names.
        in_flight: Largest number of items that are sent and have no result yet.
        readers: Threads that read images.
        on_progress: Called after each result, and when items wait.

    Raises:
        SagittalError: the batch cannot continue; run it again when the cause is gone.
    """
    place = Path(directory)
    plan.check(place)
    manifest = manifest or open_manifest(plan.manifest)
    total = manifest.count()

    def create(items: int) -> None:
        client.batches.create(plan.name, expected_items=items, **plan.arguments())

    create(total or 0)  # a wrong option leaves no directory
    plan.save(place)
    with Output(place) as output:
        progress = Progress(total=total, completed=len(output.done), failed=len(output.failed))
        on_progress(progress)
        while True:
            try:
                _run_once(client, output, plan, manifest, progress, on_progress, in_flight, readers)
            except NotFound as error:
                if error.field not in ("name", "batch"):
                    raise
                create(total or 0)  # Redis lost the batch: the results are here
            else:
                break
        output.flush()
    create(client.batches.get(plan.name).counts.ended)  # repeated keys are no items, so it is complete
    return progress


def _run_once(
    client: Client,
    output: Output,
    plan: Plan,
    manifest: Manifest,
    progress: Progress,
    on_progress: OnProgress,
    in_flight: int,
    readers: int,
) -> None:
    def tell_waiting(reason: str, _: str) -> None:
        progress.waiting = reason
        on_progress(progress)

    items = _missing(manifest.items(), output, progress)
    for result in client.batches.run(plan.name, items, in_flight=in_flight, readers=readers, on_waiting=tell_waiting):
        if output.write(result):
            _count(progress, result)
            on_progress(progress)


def _count(progress: Progress, result: BatchResult) -> None:
    progress.new += 1
    if result.error is None:
        progress.completed += 1
    else:
        progress.failed += 1


def _missing(items: Iterator[BatchItem], output: Output, progress: Progress) -> Iterator[BatchItem]:
    """Yields the items without a result, each key once."""
    seen = Keys()
    progress.repeated = 0
    for item in items:
        if not seen.add(item.key):
            progress.repeated += 1
        elif item.key not in output.done and item.key not in output.failed:
            yield item
    seen.close()


def checked_plan(directory: Path) -> Plan:
    """Returns the plan of a directory. Raises InvalidRequest if it has none."""
    plan = Plan.of(directory)
    if plan is None:
        text = f"{directory} has no {DESCRIPTION}: it is no output of `sagittal batch run`"
        raise InvalidRequest(text, field="batch")
    return plan
