"""What a process does is seen by its parent, also when the process has died."""

import os
import signal
from multiprocessing import get_context

from sagittal.worker.vitals import Vitals


def die_in_a_step(vitals: Vitals) -> None:
    vitals.jobs = ["one", "two"]
    vitals.step.begin("a step of m", seconds=0.0)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_parent_sees_what_a_process_did_when_it_died() -> None:
    vitals = Vitals()
    process = get_context("fork").Process(target=die_in_a_step, args=(vitals,))
    process.start()
    process.join()
    assert (vitals.step.doing, vitals.jobs, vitals.load.doing) == ("a step of m", ["one", "two"], "")
    assert vitals.step.overdue
    assert vitals.step.seconds > 0


def test_what_ended_is_neither_done_nor_overdue() -> None:
    vitals = Vitals()
    assert (vitals.step.doing, vitals.step.seconds, vitals.step.overdue, vitals.jobs) == ("", 0.0, False, [])
    with vitals.load.during("m@1", seconds=100):
        assert (vitals.load.doing, vitals.load.overdue, vitals.step.doing) == ("m@1", False, "")
    assert vitals.load.doing == ""


def test_long_texts_are_cut() -> None:
    vitals = Vitals()
    vitals.step.begin("x" * 5000, seconds=100)
    vitals.load.begin("é" * 5000, seconds=100)
    vitals.jobs = [f"job-{number:032}" for number in range(1000)]
    assert set(vitals.step.doing) == {"x"}
    assert vitals.load.doing.startswith("ééé")
    assert len(vitals.jobs) > 100
    vitals.jobs = ["last"]
    assert vitals.jobs == ["last"]
