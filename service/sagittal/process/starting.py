"""First step of every program: make it stoppable before it imports large libraries.

For process 1, such as the program of a container, the kernel delivers only signals that have a handler. Without this, a
stop during the imports would be ignored, and the program killed after the grace period.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit status of a program if one of its libraries is not installed.
EXTRA_MISSING = 4

#: Signals that ask a program to stop.
STOPPING = (signal.SIGTERM, signal.SIGINT)


def end_on_signals() -> None:
    """Makes the program end immediately on a stop signal, until it installs handlers of its own."""
    for number in STOPPING:
        signal.signal(number, _end)


@contextmanager
def naming_extra(program: str, extra: str) -> Iterator[None]:
    """Ends the program if an import fails, with a message that names the extra of the package to install.

    gRPC, which reads its settings when it is imported, writes only errors, unless GRPC_VERBOSITY is set: otherwise it
    writes a line of its own to the log whenever an idle or old connection is replaced.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sagittal":
            raise
        sys.stderr.write(f"{program}: {error.name} is not installed: pip install 'sagittal[{extra}]'\n")
        sys.exit(EXTRA_MISSING)


@contextmanager
def keeping_imports() -> Iterator[None]:
    """Collects no garbage during imports, and never visits what they made, which lives as long as the program.

    So a worker, which imports torch, starts and ends faster, and the processes that it forks share more memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
