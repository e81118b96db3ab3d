"""Processes that end when their parent ends, for whatever reason."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1

#: Time between two checks of the parent, in seconds, on systems whose kernel does not report its death.
LOOK_SECONDS = 0.5


def die_with_parent(number: int, parent: int) -> None:
    """Makes this process receive a signal if its parent dies: from the kernel on Linux, from a thread elsewhere.

    Args:
        number: Number of the signal.
        parent: Process id of the parent. If it is already dead, this raises SystemExit.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    else:
        threading.Thread(target=_watch, args=(number, parent), daemon=True).start()
    if os.getppid() != parent:
        sys.exit(128 + number)


def _watch(number: int, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.Signals(number))
