"""`sagittal up` and `sagittal demo`: the whole system on this machine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagittal.cli.explain import DEFAULT_MODEL, Question, ask, check_readable, draw, tell
from sagittal.cli.failures import echo, stopping_on_signals
from sagittal.cli.terminal import make_reporter
from sagittal.client import Client

if TYPE_CHECKING:
    from sagittal.cli.stack import LocalStack, Plan

#: Interval of checks whether every process runs, in seconds.
LOOK_SECONDS = 0.5


@click.command()
@click.option("--listen", default="127.0.0.1:50051", show_default=True, help="Address of the service.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65534),
    default=9090,
    show_default=True,
    help="Port of the service's metrics; the worker's is the next. 0 disables both.",
)
@click.option(
    "--page-port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port of the page on 127.0.0.1. 0 switches it off.",
)
@click.option(
    "--models",
    "models_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with the models to serve.  [default: EfficientNet-Lite0]",
)
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory that keeps jobs and logs.  [default: a temporary one]",
)
def up(listen: str, metrics_port: int, page_port: int, models_file: Path | None, state: Path | None) -> None:
    """Runs Valkey, the service and a worker on this machine until Ctrl-C.

    A service or worker that dies is restarted and resumes its work, up to five times within a minute.
    """
    from sagittal.cli.stack import MODELS_FILE, Plan  # noqa: PLC0415 - needs the extra `demo`

    plan = Plan(
        listen=listen,
        service_metrics=metrics_port,
        worker_metrics=metrics_port and metrics_port + 1,
        page=page_port,
        models_file=models_file or MODELS_FILE,
        state=state,
    )
    with stopping_on_signals(), running(plan) as stack, Client(listen) as client:
        stack.wait_for_service()
        echo(f"service  {listen}")
        echo(f"queue    {stack.queue_url}")
        echo(f"logs     {stack.directory}")
        if metrics_port:
            echo(f"metrics  http://127.0.0.1:{metrics_port}/metrics (service), :{metrics_port + 1} (worker)")
        if page_port:
            echo(f"page     http://127.0.0.1:{page_port}")
        stack.wait_for_models(client, echo)
        echo("ready; Ctrl-C stops everything")
        while True:
            stack.tend(echo)
            time.sleep(LOOK_SECONDS)


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out"),
    show_default=True,
    help="Directory for images and data.",
)
@click.option("--method", default="igos++", show_default=True, help="Method of the explanation.")
def demo(image: Path, directory: Path, method: str) -> None:
    """Explains IMAGE with a temporary system on this machine, then stops it."""
    check_readable(image)
    from sagittal.cli.stack import MODELS_FILE, Plan, free_ports  # noqa: PLC0415 - needs the extra `demo`

    port, service_metrics, worker_metrics = free_ports(3)
    plan = Plan(
        listen=f"127.0.0.1:{port}",
        service_metrics=service_metrics,
        worker_metrics=worker_metrics,
        models_file=MODELS_FILE,
    )
    question = Question(
        image=image, model=DEFAULT_MODEL, method=method, parameters={}, target=None, baseline="blur", seed=0,
        max_evaluations=0, deadline=None, cache="use", protocol="mask",
    )  # fmt: skip
    with stopping_on_signals(), make_reporter(question.model, to_the_end=False) as reporter:
        reporter.say("starting Valkey, the service and a worker")
        with running(plan) as stack, Client(plan.listen) as client:
            stack.wait_for_service()
            stack.wait_for_models(client, reporter.say)
            explanation = ask(client, question, reporter)
            files = draw(client, question, explanation, directory)
    tell(explanation, directory, files)


@contextmanager
def running(plan: "Plan") -> "Iterator[LocalStack]":
    """Runs the three processes while the block runs."""
    from sagittal.cli.stack import LocalStack  # noqa: PLC0415 - needs the extra `demo`

    with LocalStack(plan) as stack:
        yield stack
