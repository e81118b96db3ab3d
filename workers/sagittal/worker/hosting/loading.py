"""Loads a worker's models, and reports the results in log and metrics."""

from dataclasses import dataclass

import structlog
import torch

from sagittal.models.loaded import LoadedModel
from sagittal.models.loading import load
from sagittal.models.sources import Access, ModelUnavailable
from sagittal.worker.hosting.description import describe_model
from sagittal.worker.hosting.model import HostedModel, InMemory
from sagittal.worker.metrics import FAILED, READY, WorkerMetrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Loader:
    """Loads models on a device; a failure affects no other model."""

    metrics: WorkerMetrics
    device: torch.device
    access: Access
    """Sources that models may be loaded from; narrower for models registered over the API."""
    memo_bytes: int = 0
    """Memory for the scores that jobs on the same image share, for each model; 0 for none."""

    def load(self, hosted: HostedModel, *, batch_size: int) -> str:
        """Loads a model and constructs its engine; returns the error, empty on success."""
        entry = hosted.entry
        log.info("model-loading", model=entry.name, version=entry.version, device=str(self.device))
        try:
            if hosted.desired.refused:
                raise ModelUnavailable(hosted.desired.refused)
            access = self.access if hosted.desired.from_file else self.access.for_registrations()
            loaded = load(entry, self.device, batch_size=batch_size, access=access)
        except ModelUnavailable as unavailable:
            return self._failed(hosted, str(unavailable))
        except Exception as error:
            log.error("model-crashed", model=entry.name, version=entry.version, exc_info=error)
            return self._failed(hosted, f"{type(error).__name__}: {error}")
        hosted.memory = InMemory(loaded, loaded.engine(memo_bytes=self.memo_bytes))
        hosted.described = describe_model(loaded)
        self._report(loaded)
        return ""

    def _failed(self, hosted: HostedModel, message: str) -> str:
        self.metrics.loads.labels(*hosted.key, FAILED).inc()
        log.error("model-failed", model=hosted.entry.name, version=hosted.entry.version, error=message)
        return message

    def _report(self, loaded: LoadedModel) -> None:
        for step in loaded.found.steps:
            log.info(
                "model-optimised" if step.applied else "optimisation-skipped",
                model=loaded.entry.name,
                step=step.name,
                detail=step.detail,
                largest_difference=step.largest_difference,
            )
        log.info(
            "model-ready",
            model=loaded.entry.name,
            version=loaded.entry.version,
            digest=loaded.digest,
            seconds=round(loaded.load_seconds, 2),
            batch_size=loaded.found.batch_size,
        )
        self.metrics.load_seconds.labels(*loaded.entry.key).set(loaded.load_seconds)
        self.metrics.loads.labels(*loaded.entry.key, READY).inc()
