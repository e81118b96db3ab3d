"""What is asked of a fit: the weights of equation (1), its size, its seed."""

from dataclasses import dataclass

from sagittal.explain.parameters import check, parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """Settings of a fit; out of bounds, they raise InvalidParameter."""

    concepts: int = parameter(5, "Number of x-features", minimum=1, maximum=32)
    beta: float = parameter(1.0, "Weight of the reconstruction term", minimum=0, maximum=1e6)
    q: float = parameter(1.0, "Sharpness of the log-sparse reconstruction", minimum=0, maximum=1e6)
    eta: float = parameter(1.0, "Weight of the pull-away term", minimum=0, maximum=1e6)
    epochs: int = parameter(300, "Passes over the images", minimum=1, maximum=100_000)
    hidden: int = parameter(64, "Width of the hidden layers of encoder and decoder", minimum=1, maximum=4096)
    views: int = parameter(0, "Random crops of each image that are fitted too", minimum=0, maximum=64)
    seeds: int = parameter(2, "Fits from different seeds, of which the first is kept", minimum=1, maximum=8)
    seed: int = 0

    def __post_init__(self) -> None:
        check(self)
