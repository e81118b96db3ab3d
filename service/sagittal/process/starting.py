"""What a program does first, before it imports what takes its time: it makes sure that it can be stopped.

To process 1, as a container's program is, the kernel passes on no signal that it has no handler for. A stop that came
while the program still imported would be lost, and end in SIGKILL when the grace period is over.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit code of a program one of whose libraries is not installed.
EXTRA_MISSING = 4

#: Signals that ask a program to stop.
STOPPING = (signal.SIGTERM, signal.SIGINT)


def end_on_signals() -> None:
    """Lets the program end at once when it is asked to, until it has handlers of its own."""
    for number in STOPPING:
        signal.signal(number, _end)


@contextmanager
def naming_extra(program: str, extra: str) -> Iterator[None]:
    """Ends a program whose imports fail with a line that names the extra of the package to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "sagittal":
            raise
        sys.stderr.write(f"{program}: {error.name} is not installed: pip install 'sagittal[{extra}]'\n")
        sys.exit(EXTRA_MISSING)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
