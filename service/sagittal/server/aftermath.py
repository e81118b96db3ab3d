"""Work that outlives the call that began it, such as cancelling the job of a caller who went away."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from sagittal.core.errors import SagittalError
from sagittal.runtime.supervision import Supervisor

_log = structlog.get_logger(__name__)


class Aftermath:
    """Runs such work to its end, and waits for it when the service stops."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Coroutine[Any, Any, Any], *, doing: str, job_id: str = "") -> None:
        """Starts the work; a failure is logged, and counted if it is a bug."""
        task = asyncio.create_task(self._finish(work, doing, job_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def wait(self) -> None:
        """Returns when all of it is done."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _finish(self, work: Coroutine[Any, Any, Any], doing: str, job_id: str = "") -> None:
        try:
            await work
        except SagittalError as error:
            _log.warning("aftermath-failed", doing=doing, job_id=job_id, reason=error.reason, error=error.message)
        except Exception as error:  # noqa: BLE001 - nobody else would report it
            self._supervisor.note(f"aftermath-{doing}", error)
