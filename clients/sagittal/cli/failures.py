"""Errors as one or two lines of text, and exit codes for scripts.

0    success
1    the job failed, was cancelled, or the service refused it
2    the command or the request is wrong: option, image, method, parameter, model
3    the service is unreachable or not ready
4    an extra of the package is not installed
130  interrupted (Ctrl-C); 143 and 129 after SIGTERM and SIGHUP
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

import click

from sagittal.client import (
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    SagittalError,
    Unauthenticated,
    Unavailable,
)
from sagittal.core.text import printable


def echo(text: str, *, err: bool = False, file: IO[Any] | None = None) -> None:
    """Prints lines with control characters escaped; to standard error with `err`.

    Names, labels and messages come from the service, and must not control the terminal.
    """
    click.echo(printable(text), err=err, file=file)


FAILED, USAGE, UNREACHABLE, EXTRA_MISSING, INTERRUPTED = 1, 2, 3, 4, 130

#: Remedies for errors whose message has none.
_REMEDIES: tuple[tuple[type[SagittalError], str], ...] = (
    (
        ConnectionFailed,
        "Start one on this machine with 'sagittal up', name another with --address, or encrypt with --tls or --tls-ca.",
    ),
    (Unavailable, "Try again later, or name another service with --address."),
    (Unauthenticated, "Give the token with --token or SAGITTAL_TOKEN."),
    (Overloaded, "Try again later."),
)

#: Exit code of each class of error; the first match applies.
_CODES: tuple[tuple[type[SagittalError], int], ...] = (
    (InvalidRequest, USAGE),
    (NotFound, USAGE),
    (Unavailable, UNREACHABLE),
    (SagittalError, FAILED),
)


class Failure(click.ClickException):
    """An expected error: a message without a traceback, and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the message to standard error."""
        echo(f"sagittal: {self.format_message()}", file=file, err=file is None)


class Stopped(KeyboardInterrupt):
    """A signal ended this program."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class Group(click.Group):
    """Commands whose expected errors are printed as messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs a command; converts its errors to a message and an exit code."""
        try:
            return super().invoke(ctx)
        except SagittalError as error:
            raise readable(error) from error
        except KeyboardInterrupt as error:
            raise Failure("interrupted", getattr(error, "exit_code", INTERRUPTED)) from error
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "sagittal":
                raise
            message = f"this command requires {error.name}; run pip install 'sagittal[demo]'"
            raise Failure(message, EXTRA_MISSING) from error
        except BrokenPipeError as error:
            raise Failure("the output was closed by its reader") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{where}{error.strerror or error}", USAGE) from error


def readable(error: SagittalError) -> Failure:
    """Returns an error with its remedy and exit code."""
    remedy = next((text for kind, text in _REMEDIES if isinstance(error, kind)), "")
    if error.retry_after:
        remedy = f"Try again in {error.retry_after:.0f} s."
    code = next(code for kind, code in _CODES if isinstance(error, kind))
    return Failure(f"{error}\n{remedy}".rstrip(), code)


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Makes SIGINT, SIGTERM and SIGHUP end the block like Ctrl-C, so that the processes it started are stopped.

    A shell starts background programs with SIGINT ignored; an explicit SIGINT must work nevertheless. An ignored SIGHUP
    stays ignored, as `nohup` intends.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ignoring_signals() -> Iterator[None]:
    """Ignores signals in the block, which stops other processes in bounded time."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
