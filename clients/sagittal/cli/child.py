"""Runs a program as a child that dies with its parent: `python -m sagittal.cli.child PARENT_PID MODULE`.

The parent may be killed outright, so the kernel is asked to end the child with it (Linux); elsewhere a thread looks
whether the parent is still there. Nothing needs draining then: the queue that the child worked on is gone as well.
"""

import ctypes
import os
import runpy
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
#: Time between two looks at the parent, in seconds, where the kernel does not watch.
LOOK_SECONDS = 0.5
#: Exit status of a child whose parent was gone before it began.
ORPHANED = 1


def main() -> None:
    """Binds this process to its parent and becomes the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        sys.exit(ORPHANED)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
