"""Command-line options that select the service."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from sagittal.client import TLS, Client

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_ADDRESS = "localhost:50051"

_OPTIONS = (
    click.option(
        "--address", default=DEFAULT_ADDRESS, envvar="SAGITTAL_ADDRESS", show_default=True, show_envvar=True,
        help="Address of the service: host:port, or unix:PATH.",
    ),
    click.option("--token", default="", envvar="SAGITTAL_TOKEN", show_envvar=True, help="Bearer token."),
    click.option("--tls/--no-tls", default=False, envvar="SAGITTAL_TLS", help="Encrypts the connection."),
    click.option(
        "--tls-ca", type=click.Path(path_type=Path), envvar="SAGITTAL_TLS_CA", show_envvar=True,
        help="PEM file of trusted authorities; implies --tls.",
    ),
    click.option(
        "--tls-cert", type=click.Path(path_type=Path), envvar="SAGITTAL_TLS_CERT",
        help="PEM file of this client's certificate.",
    ),
    click.option(
        "--tls-key", type=click.Path(path_type=Path), envvar="SAGITTAL_TLS_KEY", help="PEM file of this client's key."
    ),
)  # fmt: skip


def connected(command: Command) -> Command:
    """Adds the connection's options to a command, and passes a `Client` as its first argument."""

    @wraps(command)
    def run(
        address: str,
        token: str,
        tls: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        **rest: Any,
    ) -> Any:
        encrypted = TLS(root_certificates=tls_ca, certificate=tls_cert, private_key=tls_key)
        with Client(address, token=token, tls=encrypted if tls or tls_ca or tls_cert else None) as client:
            return command(client, **rest)

    decorated: Any = run
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]
