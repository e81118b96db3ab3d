"""`sagittal batch`: explains very many images, and continues after any interruption."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from sagittal.bulk.failures import read_failures, remedy_for
from sagittal.bulk.manifests import Manifest, open_manifest
from sagittal.bulk.output import Output, OutputInUse
from sagittal.bulk.runs import Plan, Progress, checked_plan, new_name
from sagittal.bulk.runs import run as run_plan
from sagittal.bulk.summary import write_summary
from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL, parse_settings
from sagittal.cli.failures import FAILED, Failure, echo
from sagittal.client import Batch, Client, NotFound, Retry

#: Time between two lines of progress where there is no terminal, in seconds.
PLAIN_SECONDS = 10.0

directory_option = click.option(
    "--out", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory of results."
)
flow_options = (
    click.option(
        "--in-flight",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Maximum number of items that are sent and have no result yet.",
    ),
    click.option("--readers", type=click.IntRange(1), default=16, show_default=True, help="Threads that read images."),
    click.option(
        "--patience",
        type=click.FloatRange(0),
        default=600.0,
        show_default=True,
        help="Time to wait for a service that is unavailable, in seconds.",
    ),
)


def flowing(command: Any) -> Any:
    """Adds the options about reading and sending."""
    for option in reversed(flow_options):
        command = option(command)
    return command


@click.group()
def batch() -> None:
    """Explains very many images and stores the results in Parquet and safetensors."""


@batch.command()
@click.argument("manifest")
@directory_option
@click.option("--name", default="", help="Name of the batch.  [default: made from the directory's name]")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model, or name@version.")
@click.option("--method", default="igos++", show_default=True, help="Method; 'sagittal models show' lists them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the method; repeatable.")
@click.option("--target", help="Index or label of the class to explain.  [default: the model's top class]")
@click.option(
    "--baseline", type=click.Choice(["blur", "black", "mean", "noise"]), default="blur", show_default=True,
    help="What replaces the hidden part.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option(
    "--max-evaluations",
    type=click.IntRange(0),
    default=0,
    help="Maximum number of model evaluations of an item; 0 for no limit.",
)
@flowing
@connected
def run(client: Client, *, manifest: str, directory: Path, name: str, settings: Sequence[str], **asked: Any) -> None:
    """Explains the images of MANIFEST and writes the results to a directory.

    MANIFEST is a CSV, TSV, JSONL or Parquet file, a folder, a pattern such as "images/*.jpg", WebDataset shards such as
    "train-{000..099}.tar", or the URL of one of these. The columns of a table are image (or path, file, url), key,
    target, boxes, baseline, method, seed and labels; only the first is needed. Run the same command again to continue.
    """
    flow = {each: asked.pop(each) for each in ("in_flight", "readers", "patience")}
    open_manifest(manifest)  # fails before anything is written
    before = Plan.of(directory)
    options = batch_options(client, settings, before, **asked)
    plan = Plan(name=name or (before.name if before else new_name(directory)), manifest=manifest, options=options)
    _run(client, directory, plan, **flow)


@batch.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@flowing
@connected
def resume(client: Client, *, directory: Path, **flow: Any) -> None:
    """Continues the batch of DIRECTORY, also if it is paused."""
    plan = checked_plan(directory)
    try:
        client.batches.resume(plan.name)
    except NotFound:
        echo(f"the service does not know {plan.name}; creating it again", err=True)
    try:
        _run(client, directory, plan, **flow)
    except OutputInUse:
        echo(f"{plan.name} is resumed; the program that writes to {directory} continues it", err=True)


@batch.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@flowing
@connected
def retry(client: Client, *, directory: Path, **flow: Any) -> None:
    """Explains the images of DIRECTORY again that failed or were cancelled."""
    plan = checked_plan(directory)
    forget_failures(client, directory, plan)
    _run(client, directory, plan, **flow)


@batch.command()
@click.argument("batch")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def status(client: Client, *, batch: str, as_json: bool) -> None:
    """Prints the state of BATCH, a name or a directory of results."""
    found = client.batches.get(_name(batch))
    if as_json:
        echo(json.dumps(batch_json(found), indent=2))
        return
    counts = found.counts
    of = f" of {found.expected_items:,}" if found.expected_items else ""
    echo(f"{found.name}: {found.state}, {counts.ended:,}{of} items ended, {counts.in_flight:,} in flight")
    echo(f"  completed {counts.completed:,}, failed {counts.failed:,}, cancelled {counts.cancelled:,}")
    echo(f"  spent {found.spent.evaluations:,} evaluations, {found.spent.worker_seconds:,.1f} s on workers")
    if found.remaining is not None:
        left = found.remaining
        echo(f"  to come about {left.evaluations:,} evaluations, {left.worker_seconds:,.1f} s on workers")


@batch.command("list")
@connected
def list_batches(client: Client) -> None:
    """Lists batches."""
    for found in client.batches.list():
        echo(f"{found.name}  {found.state}  {found.counts.ended:,} ended  {found.changed:%Y-%m-%d %H:%M}")


@batch.command()
@click.argument("batch")
@connected
def pause(client: Client, *, batch: str) -> None:
    """Pauses BATCH: what is not queued waits until 'sagittal batch resume'."""
    echo(f"{client.batches.pause(_name(batch)).name} is paused")


@batch.command()
@click.argument("batch")
@connected
def cancel(client: Client, *, batch: str) -> None:
    """Cancels BATCH and its jobs; it takes no further items."""
    echo(f"{client.batches.cancel(_name(batch)).name} is cancelled")


@batch.command()
@click.argument("batch")
@connected
def failures(client: Client, *, batch: str) -> None:
    """Prints the failures of BATCH as JSON lines, with reason and remedy."""
    place = Path(batch)
    if Plan.of(place) is not None:
        for each in read_failures(place):
            echo(json.dumps(each, ensure_ascii=False))
        return
    for item in client.batches.items(batch, states=["failed", "cancelled"]):
        error = item.error
        document = {
            "key": item.key,
            "state": item.state,
            "reason": error.reason if error else "",
            "message": error.message if error else "",
            "remedy": remedy_for(error),
            "job_id": item.job_id,
        }
        echo(json.dumps(document, ensure_ascii=False))


def forget_failures(client: Client, directory: Path, plan: Plan) -> None:
    """Forgets the failures of a directory, and those of its batch in the service: their items run again."""
    with Output(directory) as output:
        try:
            client.batches.retry(plan.name)
        except NotFound:
            echo(f"the service does not know {plan.name}; creating it again", err=True)
        forgotten = output.forget_failures()
    echo(f"{forgotten:,} items run again", err=True)


def batch_json(found: Batch) -> dict[str, Any]:
    """Returns a batch as JSON values."""
    left = found.remaining
    return {
        "name": found.name,
        "state": found.state,
        "model": found.model,
        "model_version": found.model_version,
        "expected_items": found.expected_items,
        "in_flight": found.counts.in_flight,
        "completed": found.counts.completed,
        "failed": found.counts.failed,
        "cancelled": found.counts.cancelled,
        "spent_evaluations": found.spent.evaluations,
        "spent_worker_seconds": found.spent.worker_seconds,
        "remaining_evaluations": left.evaluations if left else None,
        "remaining_worker_seconds": left.worker_seconds if left else None,
        "created": found.created.isoformat(),
        "changed": found.changed.isoformat(),
    }


def _name(batch: str) -> str:
    plan = Plan.of(Path(batch))
    return plan.name if plan is not None else batch


def batch_options(
    client: Client,
    settings: Sequence[str],
    before: Plan | None,
    *,
    model: str,
    method: str,
    target: str | None,
    **rest: Any,
) -> dict[str, Any]:
    """Returns what items have in common. The version of the model is fixed when the directory is made."""
    name, _, version = model.partition("@")
    known = before.options if before else {}
    if not version:
        version = known["model_version"] if known.get("model") == name else client.model(name).version
    options: dict[str, Any] = {"model": name, "model_version": version, "method": method, **rest}
    if settings:
        options["method"] = {"name": method, **_plain(parse_settings(settings))}
    if target is not None:
        options["target"] = int(target) if target.isdigit() else target
    return options


def _plain(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    for name, value in parameters.items():
        if not isinstance(value, str):
            raise click.BadParameter(
                f"{name} is an array, which a batch cannot store; give a value", param_hint="--set"
            )
    return parameters


def explain_items(
    client: Client,
    directory: Path,
    plan: Plan,
    *,
    in_flight: int,
    readers: int,
    patience: float,
    manifest: Manifest | None = None,
) -> tuple[Progress, Path]:
    """Runs a batch to its end and shows its progress; returns its counts and the page that sums it up."""
    client.options = replace(client.options, retry=Retry(call_seconds=patience, stream_seconds=patience))
    with _Reporter() as reporter:
        done = run_plan(
            client,
            directory,
            plan,
            manifest=manifest,
            in_flight=in_flight,
            readers=readers,
            on_progress=reporter.show,
        )
    return done, write_summary(directory, plan, client.batches.get(plan.name))


def _run(client: Client, directory: Path, plan: Plan, **flow: Any) -> None:
    done, page = explain_items(client, directory, plan, **flow)
    repeated = f", {done.repeated:,} repeated keys" if done.repeated else ""
    echo(f"{done.completed:,} completed, {done.failed:,} failed{repeated}: {page}")
    if done.failed:
        items = "item" if done.failed == 1 else "items"
        raise Failure(f"{done.failed:,} {items} failed: see {directory / 'failures.jsonl'}", FAILED)


class _Reporter:
    """Shows progress on standard error: a bar with rate and remaining time, or a line now and then."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Bar(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task("items", total=None, rate="", left="") if self._bar else None
        self._next = 0.0

    def __enter__(self) -> "_Reporter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Shows where a run is."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.1 if self._bar is not None else PLAIN_SECONDS)
        rate, left = f"{progress.rate:,.1f}/s", _left(progress)
        if self._bar is not None and self._task is not None:
            total = None if progress.total is None else progress.total - progress.repeated
            waiting = f"items ({progress.waiting})" if progress.waiting else "items"
            self._bar.update(
                self._task, completed=progress.ended, total=total, rate=rate, left=left, description=waiting
            )
            return
        of = f" of {progress.total:,}" if progress.total is not None else ""
        waiting = f", waiting: {progress.waiting}" if progress.waiting else ""
        self._console.print(f"{progress.ended:,}{of} items, {progress.failed:,} failed, {rate}, {left}{waiting}")


def _left(progress: Progress) -> str:
    if progress.remaining is None:
        return "remaining time unknown"
    minutes, seconds = divmod(round(progress.remaining), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d} left"
