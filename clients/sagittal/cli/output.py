"""What commands print: names, labels and messages come from the service, and must not drive the terminal."""

from typing import IO, Any

import click

from sagittal.core.text import printable


def echo(text: str, *, err: bool = False, file: IO[Any] | None = None) -> None:
    """Prints lines with control characters escaped; to standard error with `err`."""
    click.echo(printable(text), err=err, file=file)
