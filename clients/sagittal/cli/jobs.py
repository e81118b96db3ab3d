"""`sagittal watch`, `get`, `report`, `list`, `cancel`, `delete` and `retry`: commands on submitted jobs."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import click

from sagittal.cli.connection import connected
from sagittal.cli.failures import USAGE, Failure, echo
from sagittal.cli.report import DOCUMENT, SAVED, dump, job_json
from sagittal.cli.terminal import make_reporter
from sagittal.client import Client, Explanation

STATES = ("queued", "running", "completed", "failed", "cancelled")


@click.command()
@click.argument("job")
@click.option("--after", "after_sequence", type=click.IntRange(0), default=0, help="Start after this event.")
@connected
def watch(client: Client, *, job: str, after_sequence: int) -> None:
    """Shows the progress of JOB, to its end. Ctrl-C does not cancel the job."""
    with make_reporter("") as reporter, client.watch(job, after_sequence=after_sequence) as events:
        for event in events:
            reporter.take(event)


@click.command()
@click.argument("job")
@connected
def get(client: Client, *, job: str) -> None:
    """Prints the explanation of JOB so far as JSON."""
    explanation = client.get(job)
    echo(dump(explanation.to_dict() | {"files": {}}))


@click.command()
@click.argument("source", metavar="JOB|FILE")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="File to write.",
)
@connected
def report(client: Client, *, source: str, output: Path) -> None:
    """Writes a report: one HTML file that needs no network, and prints well.

    It has the image, heatmaps, curves, sets, graph, certificates, parameters and digests, and how to reproduce it. FILE
    is the directory of `sagittal explain -o`, its explanation.json, or a file that `Explanation.save` of the Python
    client wrote; it needs no service.
    """
    stored = _stored(Path(source))
    text = Explanation.load(stored).report() if stored is not None else client.report(source)
    output.write_text(text, encoding="utf-8")
    echo(f"{output}: {len(text) / 1024:,.0f} KiB")


def _stored(source: Path) -> Path | None:
    """Returns the file of `Explanation.save` that a path stands for; None if there is nothing at the path."""
    if not source.exists():
        return None
    directory = source if source.is_dir() else source.parent
    if source.is_file() and source.name != DOCUMENT:
        return source
    if not (directory / SAVED).is_file():
        text = f"{directory} has no {SAVED}, from which the report is drawn; 'sagittal explain -o' writes it"
        raise Failure(text, USAGE)
    return directory / SAVED


@click.command("list")
@click.option("--model", default="", help="Only jobs of this model.")
@click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="Only jobs in this state; repeatable."
)
@click.option("--reason", default="", help="Only jobs that failed for this reason, such as JOB_BURIED.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Maximum number of jobs.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def list_jobs(client: Client, *, model: str, states: Sequence[str], reason: str, limit: int, as_json: bool) -> None:
    """Lists jobs, newest first."""
    jobs = list(islice(client.list(model=model, states=states, reason=reason), limit))
    if as_json:
        echo(dump([job_json(job) for job in jobs]))
        return
    for job in jobs:
        when = job.created.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        echo(f"{job.job_id}  {when}  {job.state:<9}  {job.model}  {job.method}  {job.failure_reason}".rstrip())
    if not jobs:
        echo("no jobs", err=True)


@click.command()
@click.argument("job")
@connected
def cancel(client: Client, *, job: str) -> None:
    """Cancels JOB; a job that has ended is unchanged."""
    state = client.cancel(job).state
    echo(f"job {job}: {'will be cancelled at its next step' if state == 'running' else state}")


@click.command()
@click.argument("job")
@connected
def delete(client: Client, *, job: str) -> None:
    """Deletes JOB, which must have ended, with its image and events."""
    client.delete(job)
    echo(f"job {job}: deleted")


@click.command()
@click.argument("job")
@connected
def retry(client: Client, *, job: str) -> None:
    """Runs JOB, which must be dead-lettered, again as a new job. Needs the role `admin`."""
    echo(f"job {job}: runs again as {client.retry(job).job_id}")
