"""Copies of images to CUDA on a stream of their own, so that they wait for no batch and no batch waits for them."""

import functools

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on a device. To CUDA, it waits for this copy alone, whatever else the device has to do."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    stream.synchronize()
    # Its memory is reused only after explainers, whose stream is the default one, have read it.
    moved.record_stream(torch.cuda.default_stream(device))
    return moved


@functools.cache
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
