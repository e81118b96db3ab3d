"""`sagittal models` with what it takes to show, check and register them, and `sagittal predict`."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL
from sagittal.cli.failures import USAGE, Failure
from sagittal.cli.model_lines import checked, describe, listed
from sagittal.cli.output import echo
from sagittal.cli.report import class_json, dump, model_json
from sagittal.client import Client
from sagittal.client.registration import ModelTable


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def models(client: Client, *, as_json: bool) -> None:
    """Lists the models that can be explained."""
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
    """Shows what the self-check of the model NAME found, and the five classes that it sees in IMAGE.

    Exits with 1 where no worker has it ready, or a check did not pass.
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
        raise Failure("; ".join(model.failures) or "not every check passed")


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@connected
def register(client: Client, *, file: Path) -> None:
    """Registers the models of FILE, a models file, with every worker that serves what is registered."""
    for table in read_tables(file):
        model = client.register_model(table)
        echo(f"registered {model.name} version {model.version}; see: sagittal models check {model.name}")


@models.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--field", "fields", multiple=True, help="Changes this field alone, such as 'latest'; repeat it.")
@connected
def update(client: Client, *, file: Path, fields: tuple[str, ...]) -> None:
    """Changes registered models into what FILE says; running jobs finish on what they began with."""
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
    """Asks workers to load the model NAME, those too that could not load it before."""
    client.load_model(name, version=version)
    echo(f"asked for {name} to be loaded; see: sagittal models check {name}")


@models.command()
@click.argument("name")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@connected
def unload(client: Client, *, name: str, version: str) -> None:
    """Asks workers to unload the model NAME when no job runs on it; a later job loads it again."""
    client.unload_model(name, version=version)
    echo(f"asked for {name} to be unloaded")


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
        echo(dump([class_json(each) | {"score": each.score} for each in scores]))
        return
    for each in scores:
        echo(f"{each.score:7.2%}  {each.label or f'class {each.index}'}")


def read_tables(path: Path) -> Sequence[ModelTable]:
    """Returns the tables of a models file. Raises a Failure where it is none."""
    try:
        tables = tomllib.loads(path.read_text()).get("models")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: is not TOML: {error}", USAGE) from error
    if not isinstance(tables, list) or not tables:
        raise Failure(f"{path}: has no [[models]] table; add one for each model", USAGE)
    return tables
