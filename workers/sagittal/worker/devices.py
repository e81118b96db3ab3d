"""The devices that a worker is to run on."""

from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from sagittal.models.sources import ModelUnavailable

EVERY_GPU = "cuda:*"
"""Stands for each GPU that this process may use."""


def named_devices(wish: str) -> Sequence[str]:
    """Returns the devices of a comma-separated wish. Raises ModelUnavailable if it stands for none."""
    names = [name.strip() for name in wish.split(",") if name.strip()]
    if EVERY_GPU not in names:
        return names
    if not (count := _count_gpus()):
        raise ModelUnavailable(f"the device {EVERY_GPU!r} stands for each GPU, and there is none")
    return [f"cuda:{index}" for index in range(count)]


def _count_gpus() -> int:
    """Counts GPUs in a process of its own: one that has asked CUDA anything cannot be forked."""
    fork = get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_tell_gpus, args=(theirs,))
    process.start()
    theirs.close()
    try:
        return int(ours.recv_bytes())
    except EOFError:
        raise ModelUnavailable("the GPUs cannot be counted: CUDA ended the process that asked; see the log") from None
    finally:
        process.join()


def _tell_gpus(connection: Connection) -> None:
    connection.send_bytes(str(torch.cuda.device_count()).encode())
