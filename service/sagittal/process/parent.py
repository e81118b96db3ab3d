"""Processes that end with the one that started them, however it ends."""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1

#: Time between two looks at the parent, in seconds, if the kernel does not watch.
LOOK_SECONDS = 0.5


def die_with_parent(number: int, parent: int) -> None:
    """Lets this process get a signal when its parent dies: from the kernel on Linux, from a thread elsewhere.

    Args:
        number: Of the signal.
        parent: Process that it is; one that is gone already raises SystemExit.
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
