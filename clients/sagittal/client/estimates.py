"""Estimates of the cost of explanations."""

from dataclasses import dataclass

from sagittal.client.parsing import parse
from sagittal.v1 import explanation_service_pb2 as service_pb

SECONDS_PER_HOUR = 3600.0
"""Seconds in an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The expected cost of explanations, for all images together."""

    basis: str
    """Basis of the estimate: ended jobs with the "same_setting" or the "same_method", or only the "limit" of
    evaluations. Empty if there is none; all costs are then 0."""
    evaluations: int
    """Model evaluations, including those for metrics."""
    worker_seconds: float
    """Time in which one worker alone completes them; it executes several jobs at once."""
    wall_seconds: float | None
    """Time until all are completed at the present load; None if no worker is ready or nothing is known."""
    ready_workers: int
    queued_evaluations: int
    """Estimated evaluations of what is queued for the model now."""

    def price(self, per_hour: float) -> float:
        """Returns the price of the workers' time.

        Args:
            per_hour: Price of an hour of one worker, such as of its GPU, in any currency.
        """
        return price_of(self.worker_seconds, per_hour)


def price_of(seconds: float, per_hour: float) -> float:
    """Returns the price of some seconds at a price of an hour."""
    return seconds / SECONDS_PER_HOUR * per_hour


def parse_estimate(message: service_pb.EstimateExplanationsResponse) -> Estimate:
    """Returns an estimate."""
    basis = service_pb.EstimateBasis.Name(message.basis).removeprefix("ESTIMATE_BASIS_").lower()
    wall = message.wall_time.ToNanoseconds() / 1e9 if message.HasField("wall_time") else None
    return parse(
        Estimate,
        message,
        basis="" if basis == "unspecified" else basis,
        worker_seconds=message.worker_time.ToNanoseconds() / 1e9,
        wall_seconds=wall,
    )
