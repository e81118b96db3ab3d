"""Keeps one server alive exactly as long as the program that started it; runs as a process of its own.

Standard input is a pipe from that program. The pipe ends if the program closes it or dies. The server is then stopped:
first by SIGTERM, so that it writes its data, and after a grace period by SIGKILL. If the guard itself is killed, the
kernel stops the server (Linux).
"""

import os
import signal
import subprocess
import sys
import threading
from functools import partial

from sagittal.process.parent import die_with_parent

#: Seconds that the server has to write its data.
GRACE = 10.0


def main() -> int:
    """Runs the command in the arguments; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The guard still has only one thread, so it is safe to run code between fork and exec.
    ending = partial(die_with_parent, signal.SIGTERM, os.getpid())
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=ending)  # noqa: S603, PLW1509
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    return server.wait()


def _stop_at_end_of_input(server: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        pass
    server.terminate()
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    sys.exit(main())
