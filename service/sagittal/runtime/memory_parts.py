"""Large parts of jobs, attached before the job comes: what `parts:ID` is on Redis."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class _Parts:
    attached: float
    by_name: dict[str, bytes] = field(default_factory=dict)


class AttachedParts:
    """Parts by job and name."""

    def __init__(self) -> None:
        self._parts: dict[str, _Parts] = {}

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(len(part) for parts in self._parts.values() for part in parts.by_name.values())

    def add(self, job_id: str, name: str, part: bytes, now: float) -> None:
        """Keeps a part; one that is there already stays."""
        parts = self._parts.setdefault(job_id, _Parts(now))
        parts.attached = now
        parts.by_name.setdefault(name, part)

    def get(self, job_id: str, name: str) -> bytes | None:
        """Returns a part; None where it is not kept."""
        parts = self._parts.get(job_id)
        return parts.by_name.get(name) if parts else None

    def drop(self, job_id: str) -> None:
        """Drops the parts of a job."""
        self._parts.pop(job_id, None)

    def forget(self, runs: set[str], before: float) -> None:
        """Drops the parts of jobs that have no run, where the last came before a time."""
        for job_id, parts in list(self._parts.items()):
            if job_id not in runs and parts.attached <= before:
                del self._parts[job_id]
