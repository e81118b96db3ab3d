"""`sagittal backup` and `sagittal restore`, for operators; they need Redis and the concept store, and no service."""

import sys

import click


@click.command()
@click.argument("file")
@click.option(
    "--keep",
    type=click.IntRange(1),
    help="Number of newest backups to keep if FILE is a directory.",
)
def backup(file: str, keep: int | None) -> None:
    """Saves models registered over the API and all concept sets to FILE, a directory or '-' (standard output).

    Connects to Redis and the store of concept sets by SAGITTAL_QUEUE__* and SAGITTAL_CONCEPTS__*, like the service.
    """
    _run(["save", file, *([] if keep is None else [str(keep)])])


@click.command()
@click.argument("file")
def restore(file: str) -> None:
    """Restores a backup from FILE, the newest of a directory or '-' (standard input). Replaces nothing.

    Connects to Redis and the store of concept sets by SAGITTAL_QUEUE__* and SAGITTAL_CONCEPTS__*, like the service.
    """
    _run(["restore", file])


def _run(arguments: list[str]) -> None:
    from sagittal.registry import backup as program  # noqa: PLC0415 - only these commands need the extra `service`

    sys.exit(program.main(arguments))
