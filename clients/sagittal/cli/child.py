"""Runs a program as a child that dies with its parent: `python -m sagittal.cli.child PARENT_PID MODULE`.

If the parent is killed, the child need not drain: the queue that it worked on is gone as well.
"""

import runpy
import signal
import sys

from sagittal.process.parent import die_with_parent


def main() -> None:
    """Binds this process to its parent and runs the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with_parent(signal.SIGKILL, parent)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
