"""Batch sizes are found once for a model on a kind of device, and measured anew where that does not hold."""

import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from sagittal.models.measuring import BatchPlan, KeptPlan, device_name, kernel_settings

PLAN = BatchPlan(
    batch_size=16, quantum=4, pads_small=False, equal_rows=True, equality="compared", forward=80.0, backward=30.0
)


@pytest.fixture
def kept(tmp_path):
    return KeptPlan(directory=tmp_path / "cache", circumstances={"model": "m", "threads": 1})


def test_what_was_written_is_read(kept):
    assert kept.read() is None
    kept.write(PLAN)
    assert kept.read() == PLAN
    assert [path.name for path in kept.directory.iterdir()] == [kept.path.name]


def test_other_circumstances_have_another_file(kept):
    kept.write(PLAN)
    assert replace(kept, circumstances={"model": "m", "threads": 2}).read() is None


DAMAGES = {
    "cut": lambda text: text[:-20],
    "of another model": lambda text: text.replace('"m"', '"n"'),
    "impossible": lambda text: text.replace('"quantum": 4', '"quantum": 5'),
    "no numbers": lambda text: text.replace('"forward": 80.0', '"forward": "fast"'),
    "other fields": lambda text: text.replace('"quantum"', '"quanta"'),
    "a list": lambda _text: "[]",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_file_that_cannot_be_used_is_said_so_and_measured_anew(kept, damage, capsys):
    kept.write(PLAN)
    kept.path.write_text(damage(kept.path.read_text()))
    assert kept.read() is None
    assert "batch-plan-unreadable" in capsys.readouterr().out
    kept.write(PLAN)
    assert kept.read() == PLAN


def test_a_directory_that_takes_no_files_costs_a_warning_alone(kept, capsys):
    kept.directory.write_text("a file")
    kept.write(PLAN)
    assert "batch-plan-not-kept" in capsys.readouterr().out


@contextmanager
def files_no_longer_than(size):
    """Every file that this process writes meanwhile, in bytes: a disk that fills up in between."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_costs_a_warning_and_leaves_nothing_half_written(kept, capsys):
    kept.write(PLAN)
    with files_no_longer_than(20):
        kept.write(replace(PLAN, batch_size=32))
    assert "batch-plan-not-kept" in capsys.readouterr().out
    assert [path.name for path in kept.directory.iterdir()] == [kept.path.name]
    assert kept.read() == PLAN


def test_the_device_is_named_by_what_its_kernels_depend_on():
    assert torch.backends.cpu.get_cpu_capability() in device_name(torch.device("cpu"))


def test_settings_that_choose_other_kernels_are_among_the_circumstances(monkeypatch):
    monkeypatch.setenv("HOSTNAME", "pod")
    monkeypatch.delenv("MKL_ENABLE_INSTRUCTIONS", raising=False)
    before = kernel_settings()
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    assert {**before, "MKL_ENABLE_INSTRUCTIONS": "AVX2"} == kernel_settings()
    assert "HOSTNAME" not in before
