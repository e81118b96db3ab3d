import os
from pathlib import Path

import pytest

from sagittal.worker.cpu_quota import usable_processors

MANY = 64


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(MANY)))


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    directory = tmp_path / "proc"
    directory.mkdir()
    return directory


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mount_v2(proc: Path, at: Path, *, own: str, root: str = "/") -> None:
    """Makes `proc` tell of a hierarchy of version 2, and of this process's group in it."""
    write(proc / "mountinfo", f"28 22 0:25 / /proc rw - proc proc rw\n30 23 0:26 {root} {at} ro - cgroup2 cgroup rw\n")
    write(proc / "cgroup", f"0::{own}\n")


def mount_v1(proc: Path, at: Path, *, own: str, root: str = "/") -> None:
    """Makes `proc` tell of hierarchies of version 1, `cpu` and `cpuacct` in one."""
    mounts = [(root, at / "memory", "rw,memory"), (root, at / "cpu,cpuacct", "rw,cpu,cpuacct")]
    lines = [f"3{n} 23 0:2{n} {seen} {at} ro - cgroup cgroup {kind}" for n, (seen, at, kind) in enumerate(mounts)]
    write(proc / "mountinfo", "\n".join(lines) + "\n")
    write(proc / "cgroup", f"4:memory:{own}/elsewhere\n3:cpu,cpuacct:{own}\n0::/\n")


@pytest.mark.parametrize(
    ("maximum", "processors"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("20000 100000", 1),
        ("max 100000", MANY),
        ("9900000 100000", MANY),
    ],
)
def test_a_containers_limit_is_kept_rounded_up(proc: Path, tmp_path: Path, maximum: str, processors: int) -> None:
    mount_v2(proc, tmp_path / "groups", own="/")
    write(tmp_path / "groups" / "cpu.max", maximum + "\n")
    assert usable_processors(proc) == processors


@pytest.mark.parametrize(("quota", "processors"), [("300000", 3), ("250000", 3), ("-1", MANY)])
def test_a_limit_is_kept_by_control_groups_of_version_1(
    proc: Path, tmp_path: Path, quota: str, processors: int
) -> None:
    # as in a container of docker: its own group is all that is mounted, but its path is told from the machine's root
    mount_v1(proc, tmp_path / "groups", own="/docker/af01", root="/docker/af01")
    write(tmp_path / "groups" / "cpu,cpuacct" / "cpu.cfs_quota_us", quota + "\n")
    write(tmp_path / "groups" / "cpu,cpuacct" / "cpu.cfs_period_us", "100000\n")
    assert usable_processors(proc) == processors


def test_the_tightest_of_the_groups_above_counts(proc: Path, tmp_path: Path) -> None:
    mount_v2(proc, tmp_path / "groups", own="/pods.slice/pod.slice/worker.scope")
    write(tmp_path / "groups" / "pods.slice" / "cpu.max", "4000000 100000")
    write(tmp_path / "groups" / "pods.slice" / "pod.slice" / "cpu.max", "300000 100000")
    write(tmp_path / "groups" / "pods.slice" / "pod.slice" / "worker.scope" / "cpu.max", "max 100000")
    assert usable_processors(proc) == 3


def test_a_group_out_of_sight_leaves_what_is_mounted(proc: Path, tmp_path: Path) -> None:
    mount_v2(proc, tmp_path / "groups", own="/../elsewhere")
    write(tmp_path / "groups" / "cpu.max", "500000 100000")
    assert usable_processors(proc) == 5


def test_without_control_groups_the_affinity_counts(proc: Path) -> None:
    assert usable_processors(proc) == MANY
    write(proc / "mountinfo", "28 22 0:25 / /proc rw - proc proc rw\n")
    write(proc / "cgroup", "0::/\n")
    assert usable_processors(proc) == MANY


def test_this_process_may_use_a_processor() -> None:
    assert usable_processors() >= 1
