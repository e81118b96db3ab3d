"""Keeps one server alive for exactly as long as the program that started it; run as a program of its own.

Standard input is a pipe from that program. It ends when the program closes it or dies in whatever way, and then the
server is stopped: SIGTERM first, which lets it write its data, SIGKILL after a grace. Should the guard itself be
killed, the kernel stops the server (Linux).
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
    """Runs the command given as arguments; returns its status."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The guard has one thread yet, so that running code between fork and exec is safe.
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
