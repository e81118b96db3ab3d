"""`sagittal models`, `sagittal models show` and `sagittal predict`."""

from pathlib import Path

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL
from sagittal.cli.report import class_json, dump, model_json
from sagittal.client import Client, Model, ParameterInfo


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def models(client: Client, *, as_json: bool) -> None:
    """Lists the models that can be explained."""
    if click.get_current_context().invoked_subcommand is not None:
        return
    found = list(client.models())
    if as_json:
        click.echo(dump([model_json(model) for model in found]))
        return
    for model in found:
        latest = " (latest)" if model.latest else ""
        workers = f"{model.ready_workers} worker{'' if model.ready_workers == 1 else 's'} ready"
        click.echo(f"{model.name}  version {model.version}{latest}  {model.classes} classes  {workers}")
    if not found:
        click.echo("no models yet: start a worker", err=True)


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def show(client: Client, *, name: str, version: str, as_json: bool) -> None:
    """Shows the model NAME with the methods it admits and their parameters."""
    model = client.model(name, version=version)
    click.echo(dump(model_json(model)) if as_json else "\n".join(describe(model)))


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model.")
@click.option("--top", type=click.IntRange(1, 1000), default=5, show_default=True, help="Number of classes.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def predict(client: Client, *, image: Path, model: str, top: int, as_json: bool) -> None:
    """Shows what a model sees in IMAGE."""
    scores = client.predict(image, model=model, top=top)
    if as_json:
        click.echo(dump([class_json(each) | {"score": each.score} for each in scores]))
        return
    for each in scores:
        click.echo(f"{each.score:7.2%}  {each.label or f'class {each.index}'}")


def describe(model: Model) -> list[str]:
    """Returns a model as lines for people."""
    seen = model.preprocessing
    lines = [
        f"{model.name}  version {model.version}{' (latest)' if model.latest else ''}",
        f"  digest   {model.digest or 'not loaded yet'}",
        f"  classes  {model.classes}, input {seen.input_size} px ({seen.fit}, {seen.interpolation})",
    ]
    lines += [
        f"  worker   {each.worker}  {each.state}  {each.device}  {each.message}".rstrip() for each in model.workers
    ]
    for method in model.methods:
        missing = f"  (not for this model: {method.unavailable})" if method.unavailable else ""
        lines += ["", f"  {method.name}{missing}", f"    {method.summary}"]
        lines += [f"    --set {_parameter(parameter)}" for parameter in method.parameters]
    return lines


def _parameter(parameter: ParameterInfo) -> str:
    shown = f"{parameter.name}={'' if parameter.default is None else parameter.default}"
    admitted = ", ".join(parameter.choices)
    if parameter.minimum is not None and parameter.maximum is not None:
        admitted = f"{parameter.minimum:g} to {parameter.maximum:g}"
    elif parameter.minimum is not None:
        admitted = f"{'above' if parameter.exclusive_minimum else 'at least'} {parameter.minimum:g}"
    return f"{shown:<26} {parameter.summary}" + (f" [{admitted}]" if admitted else "")
