"""`sagittal backup` and `sagittal restore`, for operators; they need Redis and the concept store, and no service."""

import sys

import click

from sagittal.registry import backup as program


@click.command()
@click.argument("file")
def backup(file: str) -> None:
    """Saves models registered over the API and all concept sets to FILE; '-' is standard output.

    Connects to Redis and the store of concept sets by SAGITTAL_QUEUE__* and SAGITTAL_CONCEPTS__*, like the service.
    """
    sys.exit(program.main(["save", file]))


@click.command()
@click.argument("file")
def restore(file: str) -> None:
    """Restores a backup from FILE; '-' is standard input. Replaces nothing that exists with other content.

    Connects to Redis and the store of concept sets by SAGITTAL_QUEUE__* and SAGITTAL_CONCEPTS__*, like the service.
    """
    sys.exit(program.main(["restore", file]))
