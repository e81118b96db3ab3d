"""Forks workers, services and clients from one process that has imported them, so that they are back in a moment.

Reads a JSON object a line: `{"name", "program", "environment", "log", "namespace"}`. Writes `{"started": NAME, "pid"}`
and `{"ended": NAME, "pid", "status"}`. When its input ends, it kills what it started and ends.
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from chaos import client
from chaos.points import Fate, Journal, PointedJobQueue, PointedWorkerQueue

import sagittal.server.main as service
import sagittal.worker.main as worker
from sagittal.process.logs import configure_logging
from sagittal.worker.settings import WorkerSettings

#: Flag of setns(2) for a network namespace.
CLONE_NEWNET = 0x40000000


def run_worker(fate: Fate) -> int:
    """Is the program `sagittal-worker` on a queue with fault points."""
    connect = worker.open_worker
    worker.open_worker = lambda *given, **named: PointedWorkerQueue(connect(*given, **named), fate)
    settings = WorkerSettings()
    configure_logging(settings.log_format, settings.log_level)
    worker.work(settings)  # by itself: this program is the parent that starts it again
    return 0


def run_service(fate: Fate) -> int:
    """Is the program `sagittal-service` on a queue with fault points."""
    connect = service.open_jobs
    service.open_jobs = lambda *given, **named: PointedJobQueue(connect(*given, **named), fate)
    sys.argv = ["sagittal-service"]
    return service.main()


def run_client(_fate: Fate) -> int:
    """Is a caller that will be killed."""
    client.main()
    return 0


PROGRAMS: Mapping[str, Callable[[Fate], int]] = {"worker": run_worker, "service": run_service, "client": run_client}


def main() -> None:
    """Starts what it is told to, until its input ends."""
    alive: dict[int, str] = {}
    while True:
        readable, _, _ = select.select([sys.stdin.buffer.raw], [], [], 0.02)
        if readable:
            line = sys.stdin.buffer.raw.readline()
            if not line:
                break
            order = json.loads(line)
            pid = start(order)
            alive[pid] = order["name"]
            say(started=order["name"], pid=pid)
        reap(alive)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def reap(alive: dict[int, str]) -> None:
    """Says who has ended."""
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        say(ended=alive.pop(pid), pid=pid, status=os.waitstatus_to_exitcode(status), at=time.time())


def say(**about: object) -> None:
    """Writes one line at once."""
    sys.stdout.write(json.dumps(about) + "\n")
    sys.stdout.flush()


def start(order: Mapping[str, object]) -> int:
    """Forks a program and returns its process."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        output = os.open(str(order["log"]), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        for number, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(number, target)
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        enter(str(order["namespace"] or ""))
        journal = Journal(Path(os.environ["CHAOS_JOURNAL"]))
        status = PROGRAMS[str(order["program"])](Fate.read(os.environ.get("CHAOS_FATE", ""), journal))
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # noqa: BLE001 - a child must never come back into the code of its parent
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def enter(namespace: str) -> None:
    """Moves this process into a network namespace."""
    if not namespace:
        return
    with open(f"/run/netns/{namespace}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    main()
