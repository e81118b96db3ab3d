"""`sagittal models`, with commands to show, check and register models, and `sagittal predict`."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL
from sagittal.cli.failures import USAGE, Failure, echo
from sagittal.cli.report import dump, model_json
from sagittal.client import Client, Model, ParameterInfo
from sagittal.client.documents import class_document
from sagittal.client.registration import ModelTable

#: Bytes.
MIB = 2**20


def listed(model: Model) -> str:
    """Returns the line of a model in a list."""
    classes = f"  {model.classes} classes" if model.classes else ""
    return f"{_title(model)}{classes}  {standing(model)}"


def standing(model: Model) -> str:
    """Returns the states of a model's workers, and the command that shows why one could not load it."""
    states = Counter(worker.state for worker in model.workers)
    if not states:
        return "no worker has loaded it yet"
    said = ", ".join(f"{count} worker{'' if count == 1 else 's'} {state}" for state, count in states.items())
    return f"{said}: see sagittal models show {model.name}" if states["failed"] else said


def checked(model: Model) -> list[str]:
    """Returns the results of a model's self-check."""
    lines = [_title(model)]
    if model.classes:
        lines += [
            f"  weights  {model.weights_bytes / MIB:.1f} MiB, SHA-256 {model.weights_digest or 'unknown'}",
            f"  batch    {model.activation_bytes / MIB:.1f} MiB at its peak",
            f"  inputs   {_sizes(model)}",
            f"  speed    {_speed(model)}",
        ]
    lines += [f"  worker   {each.worker}  {each.state}  {each.message}".rstrip() for each in model.workers]
    return lines + [f"  {'ok' if each.passed else 'NOT OK':<8} {each.name}: {each.detail}" for each in model.checks]


def describe(model: Model) -> list[str]:
    """Returns a model with the methods that it admits and their parameters."""
    seen = model.preprocessing
    lines = [_title(model), f"  source   {model.source}, registered by {model.origin or 'unknown'}"]
    lines += _trial(model)
    if model.classes:
        lines += [
            f"  digest   {model.digest}",
            f"  classes  {model.classes}, {model.output}",
            f"  sees     {seen.input_size} px ({seen.fit}, {seen.interpolation})",
            f"  inputs   {_sizes(model)}",
            f"  speed    {_speed(model)}",
        ]
    lines += [
        f"  worker   {each.worker}  {each.state}  {each.device}  {each.message}".rstrip() for each in model.workers
    ]
    lines += [
        f"  {'done' if each.applied else 'skipped':<8} {each.name}: {each.detail}" for each in model.optimizations
    ]
    return [*lines, *_methods(model)]


def _trial(model: Model) -> Iterator[str]:
    if trial := model.canary:
        state = f"rolled back: {trial.rolled_back}" if trial.rolled_back else f"{trial.share:.1%} of the explanations"
        yield f"  canary   {state}"
        for who, each in (("it", trial.outcomes), ("latest", trial.latest_outcomes)):
            yield f"    {who}: {each.completed} completed, {each.failed} failed, insertion AUC {each.insertion_auc:.3f}"


def _methods(model: Model) -> Iterator[str]:
    for method in model.methods:
        missing = f"  (not for this model: {method.unavailable})" if method.unavailable else ""
        also = f" ({', '.join(method.aliases)})" if method.aliases else ""
        yield from ("", f"  {method.name}{also}{missing}", f"    {method.summary}")
        for parameter in method.parameters:
            yield f"    --set {_parameter(parameter)}"


def _title(model: Model) -> str:
    return f"{model.name}  version {model.version}{' (latest)' if model.latest else ''}"


def _sizes(model: Model) -> str:
    sides = f"{model.min_input_size} to {model.max_input_size} px" if model.max_input_size else "unknown"
    return sides + (f", patches {model.patch_grid[0]}x{model.patch_grid[1]}" if model.patch_grid else "")


def _speed(model: Model) -> str:
    with_gradient = f"{model.gradient_evaluations_per_second:.0f} with gradient"
    said = f"{model.evaluations_per_second:.0f} evaluations/s"
    return f"{said}, {with_gradient}" if model.supports_gradients else f"{said}, no gradients"


def _parameter(parameter: ParameterInfo) -> str:
    shown = f"{parameter.name}={'' if parameter.default is None else parameter.default}"
    admitted = ", ".join(parameter.choices)
    if parameter.minimum is not None and parameter.maximum is not None:
        admitted = f"{parameter.minimum:g} to {parameter.maximum:g}"
    elif parameter.minimum is not None:
        admitted = f"{'above' if parameter.exclusive_minimum else 'at least'} {parameter.minimum:g}"
    return f"{shown:<26} {parameter.summary}" + (f" [{admitted}]" if admitted else "")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def models(client: Client, *, as_json: bool) -> None:
    """Lists the registered models."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    found = list(client.models())
    if as_json:
        echo(dump([model_json(model) for model in found]))
        return
    for model in found:
        echo(listed(model))
    if not found:
        echo("no models yet: start a worker", err=True)


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def show(client: Client, *, name: str, version: str, as_json: bool) -> None:
    """Shows the model NAME with the methods it admits and their parameters."""
    model = client.model(name, version=version)
    echo(dump(model_json(model)) if as_json else "\n".join(describe(model)))


@models.command()
@click.argument("name")
@click.argument("image", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@connected
def check(client: Client, *, name: str, image: Path | None, version: str) -> None:
    """Shows the self-check of the model NAME, and its five most probable classes for IMAGE.

    Exits with 1 if no worker has it ready, or if a check failed.
    """
    model = client.model(name, version=version)
    for line in checked(model):
        echo(line)
    if not model.checks:
        reason = "; ".join(model.failures) or "no worker has loaded it yet"
        raise Failure(f"{model.name} version {model.version} is not checked: {reason}")
    if image is not None:
        for each in client.predict(image, model=name, model_version=model.version, top=5):
            echo(f"  {each.score:7.2%}  {each.label or f'class {each.index}'}")
    if model.failures or not all(each.passed for each in model.checks):
        raise Failure("; ".join(model.failures) or "a check failed")


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@connected
def register(client: Client, *, file: Path) -> None:
    """Registers the models of FILE, a models file, for all workers that serve registered models."""
    for table in read_tables(file):
        model = client.register_model(table)
        echo(f"registered {model.name} version {model.version}; see: sagittal models check {model.name}")


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--field", "fields", multiple=True, help="Changes only this field, such as 'latest'; repeatable.")
@connected
def update(client: Client, *, file: Path, fields: tuple[str, ...]) -> None:
    """Updates registered models to the content of FILE; running jobs complete with the previous settings."""
    for table in read_tables(file):
        model = client.update_model(table, fields=fields)
        echo(f"updated {model.name} version {model.version}")


@models.command()
@click.argument("name")
@click.argument("version")
@connected
def unregister(client: Client, *, name: str, version: str) -> None:
    """Removes VERSION of the model NAME; its queued jobs are cancelled."""
    client.unregister_model(name, version)
    echo(f"unregistered {name} version {version}")


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@connected
def load(client: Client, *, name: str, version: str) -> None:
    """Asks workers to load the model NAME, including workers that failed to load it before."""
    client.load_model(name, version=version)
    echo(f"requested loading of {name}; see: sagittal models check {name}")


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@connected
def unload(client: Client, *, name: str, version: str) -> None:
    """Asks workers to unload the model NAME when no job runs on it; a later job loads it again."""
    client.unload_model(name, version=version)
    echo(f"requested unloading of {name}")


@models.command()
@click.argument("name")
@click.argument("version")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.05, show_default=True, help="Of 1.")
@click.option("--max-failed", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of its jobs, of 1.")
@click.option(
    "--min-faithfulness",
    type=click.FloatRange(0, 1),
    default=0.9,
    show_default=True,
    help="Mean insertion AUC, relative to the latest version.",
)
@click.option("--min-jobs", type=click.IntRange(1), default=20, show_default=True, help="Before a decision.")
@click.option("--end", is_flag=True, help="Ends the trial.")
@connected
def canary(client: Client, *, name: str, version: str, end: bool, **settings: Any) -> None:
    """Tries VERSION of the model NAME with a share of the explanations that name no version.

    It is rolled back by itself if it fails too often, or explains less faithfully than the latest version. To promote
    it, make it the latest: sagittal models update FILE --field latest.
    """
    if end:
        client.end_canary(name, version)
        echo(f"ended the canary of {name}")
        return
    client.set_canary(name, version, **settings)
    echo(f"{name} version {version} gets {settings['share']:.1%} of the explanations; see: sagittal models show {name}")


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model.")
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="Number of classes.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def predict(client: Client, *, image: Path, model: str, top: int, as_json: bool) -> None:
    """Shows a model's most probable classes for IMAGE."""
    scores = client.predict(image, model=model, top=top)
    if as_json:
        echo(dump([class_document(each) | {"score": each.score} for each in scores]))
        return
    for each in scores:
        echo(f"{each.score:7.2%}  {each.label or f'class {each.index}'}")


def read_tables(path: Path) -> Sequence[ModelTable]:
    """Returns the tables of a models file. Raises a Failure if it is invalid."""
    try:
        tables = tomllib.loads(path.read_text()).get("models")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: is not TOML: {error}", USAGE) from error
    if not isinstance(tables, list) or not tables:
        raise Failure(f"{path}: has no [[models]] table; add one for each model", USAGE)
    return tables
