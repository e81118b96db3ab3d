"""The number of processors that this process may use: those of its affinity, within the quota of its control groups.

A container with a limit of two processors on a machine of 64 sees all 64. With 64 threads, all of them consume the
quota at once and then wait for the next period, which is much slower than two threads.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: The kernel's directory of this process.
PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """A mounted hierarchy of control groups that limits processors."""

    mounted: Path
    root: PurePosixPath
    """The group that is visible at `mounted`: a container may see only its own."""
    version: int


def usable_processors(proc: Path = PROC) -> int:
    """Returns how many threads can compute at once: at least 1; fractions are rounded up."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota(proc))))


def _quota(proc: Path) -> float:
    """Returns the quota of the tightest control group in processors; infinite if there is none."""
    try:
        mounts, groups = (proc / "mountinfo").read_text(), (proc / "cgroup").read_text()
    except OSError:  # not Linux, or /proc is hidden: the quota is unknown
        return math.inf
    bounds = (
        _bound(group, hierarchy.version)
        for hierarchy in _hierarchies(mounts)
        for group in _lineage(hierarchy, _own_group(groups, hierarchy.version))
    )
    return min(bounds, default=math.inf)


def _hierarchies(mounts: str) -> Iterator[_Hierarchy]:
    """Yields the mounted hierarchies that have the controller `cpu`; fields as in proc(5)."""
    for line in mounts.splitlines():
        place, _, system = line.partition(" - ")
        root, mounted = place.split()[3:5]
        kind, _, options = system.split(maxsplit=2)
        if kind == "cgroup2":
            yield _Hierarchy(Path(mounted), PurePosixPath(root), version=2)
        elif kind == "cgroup" and "cpu" in options.split(","):
            yield _Hierarchy(Path(mounted), PurePosixPath(root), version=1)


def _own_group(groups: str, version: int) -> PurePosixPath:
    """Returns the control group of this process; lines are `number:controllers:path`, of version 2 `0::path`."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(",") if version == 1 else not controllers:
            return PurePosixPath(path)
    return PurePosixPath("/")


def _lineage(hierarchy: _Hierarchy, group: PurePosixPath) -> Iterator[Path]:
    """Yields the visible directories of a group and its ancestors: each may have a quota."""
    seen = group.is_relative_to(hierarchy.root) and ".." not in group.parts
    below = group.relative_to(hierarchy.root) if seen else PurePosixPath()
    for part in (below, *below.parents):
        yield hierarchy.mounted / part


def _bound(group: Path, version: int) -> float:
    """Returns the quota of a group in processors: quota by period, both in microseconds."""
    try:
        if version == 1:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            quota, period = (group / "cpu.max").read_text().split()
    except OSError:  # the root group has no such file
        return math.inf
    # Without a limit, version 2 has "max", and version 1 a quota of -1.
    return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
