"""Runs a program as a child that dies with its parent: `python -m sagittal.cli.child PARENT_PID MODULE`.

Nothing needs draining when the parent was killed outright: the queue that the child worked on is gone as well.
"""

import runpy
import signal
import sys

from sagittal.process.parent import die_with_parent


def main() -> None:
    """Binds this process to its parent and becomes the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(signal.SIGKILL, parent)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
