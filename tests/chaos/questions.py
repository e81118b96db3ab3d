"""What chaos runs ask for: few enough questions that each has one known answer, told apart by method and seed."""

from typing import Any

import known_models
import numpy as np

from sagittal.client import RISE, IGOSPlusPlus, MinimalSufficientExplanations, StructuredAttentionGraph

PICTURE = (np.clip(known_models.image(known_models.LEFT).permute(1, 2, 0).numpy(), 0, 1) * 255).astype(np.uint8)
"""A picture whose class hangs on one region."""

SPECS: tuple[dict[str, Any], ...] = (
    {"method": IGOSPlusPlus(mask_size=7, iterations=8, points=2), "seed": 1},
    {"method": IGOSPlusPlus(mask_size=7, iterations=20, points=2), "seed": 2},
    {"method": IGOSPlusPlus(mask_size=7, iterations=30, points=1), "seed": 3, "max_evaluations": 300},
    {"method": MinimalSufficientExplanations(grid=7), "seed": 4},
    {"method": StructuredAttentionGraph(grid=7), "seed": 5, "max_evaluations": 200},
    {"method": RISE(masks=60), "seed": 6},
)
