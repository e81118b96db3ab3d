"""Programs of ours as child processes, each with its log; one that dies may be started again, so often and no more."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: Time that a process has to end after SIGTERM, in seconds, before it is killed.
GRACE_SECONDS = 8.0
#: Lines of a log that are shown when its process died.
TAIL_LINES = 12
#: How often something may be started again within `RESTART_SECONDS`: more often, and it will not do.
RESTARTS, RESTART_SECONDS = 5, 60.0


@dataclass(slots=True)
class Restarts:
    """When something was started again."""

    times: deque[float] = field(default_factory=deque)

    def allow(self) -> bool:
        """Whether it may be started once more now, which then counts."""
        now = time.monotonic()
        while self.times and now - self.times[0] > RESTART_SECONDS:
            self.times.popleft()
        if len(self.times) >= RESTARTS:
            return False
        self.times.append(now)
        return True


@dataclass(slots=True)
class Child:
    """A program of ours that dies with this process."""

    name: str
    module: str
    environment: Mapping[str, str]
    log: Path
    restarts: Restarts = field(default_factory=Restarts)
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Starts the program; its log begins anew with the first start, and goes on with the others."""
        with self.log.open("wb" if self._process is None else "ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, with arguments of our own
                [sys.executable, "-m", "sagittal.cli.child", str(os.getpid()), self.module],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is for this program, which then stops its children in order
            )

    @property
    def ending(self) -> str:
        """How the program ended, as a person says it; empty while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def stop(self) -> None:
        """Asks the process to end; kills it where it does not in time."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        """The last lines of the log."""
        return tail(self.log)


def tail(log: Path) -> str:
    """Returns the last lines of a log, indented."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (its log is empty)"
