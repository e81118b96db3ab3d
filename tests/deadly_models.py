"""Classifiers that end, stop or fill the process that runs or loads them."""

import ctypes
import os
import signal
import time
from pathlib import Path

import torch
from known_models import LEFT, LooksAtRegions
from torch import Tensor, nn

MIB = 2**20


class Slow(nn.Module):
    """Looks at the left, and takes its time for images of jobs, not for the noise with which loading measures it."""

    seconds = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.left = LooksAtRegions(LEFT)

    def forward(self, inputs: Tensor) -> Tensor:
        scores = self.left(inputs)
        red = any_is_red(inputs)
        if red:
            self.meet_red()
        if red or any_shows_left(scores):
            time.sleep(self.seconds)
        return scores

    def meet_red(self) -> None:
        """What happens in a batch with a red image."""


def any_is_red(inputs: Tensor) -> bool:
    means = inputs.detach().mean((-2, -1))
    return bool((means[:, 0] - means[:, 1] > 0.5).any())


def any_shows_left(scores: Tensor) -> bool:
    """Whether an image shows a fifth of the checkerboard, which noise is far from."""
    return bool((scores.detach()[:, 1] > -3).any())


class DiesOfRed(Slow):
    def meet_red(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class HangsOnRed(Slow):
    def meet_red(self) -> None:
        time.sleep(10_000)


class HangsOnRedWithTheLock(Slow):
    def meet_red(self) -> None:
        ctypes.PyDLL(None).sleep(10_000)  # holds the interpreter's lock


class LeaksOnRed(Slow):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def meet_red(self) -> None:
        self.kept.append(torch.ones(30 * MIB // 4))


def crashes_when_loaded() -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Slow()


def hangs_when_loaded() -> nn.Module:
    time.sleep(10_000)
    return Slow()


def ends_the_process_when_loaded() -> nn.Module:
    os._exit(0)


def takes_all_memory_when_loaded() -> nn.Module:
    kept = [torch.ones(50 * MIB // 4) for _ in range(60)]  # 3 GB, which the tests' machines have
    time.sleep(10_000)
    return nn.Sequential(*kept)


def crashes_every_other_time() -> nn.Module:
    counter = Path(os.environ["LOADS"])
    with counter.open("a") as file:
        file.write("x")
    if len(counter.read_text()) % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return Slow()
