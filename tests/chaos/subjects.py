"""The model that chaos runs explain: its reason is known, and what it says of a picture is the same in any batch."""

import time

import torch
from known_models import LEFT, LooksAtRegions
from torch import Tensor, nn

#: Time that one call takes besides computing, in seconds: a device would be busy while the processor is free.
CALL_SECONDS = 0.003


class RowByRow(nn.Module):
    """Evaluates each picture by itself, so that equal pictures give equal bits whatever stands beside them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(CALL_SECONDS)
        return torch.cat([self.model(row.unsqueeze(0)) for row in inputs])


def looks_at_left() -> nn.Module:
    """A factory for model files."""
    return RowByRow(LooksAtRegions(LEFT))


MODELS = """
[[models]]
name = "left"
source = { kind = "python", factory = "chaos.subjects:looks_at_left" }
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""
