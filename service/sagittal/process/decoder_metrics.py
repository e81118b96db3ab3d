"""Metric of ended image decoding processes, for service and worker."""

from collections.abc import Iterable
from threading import Lock

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sagittal.core.decoding import ENDINGS, ended_decoders


class DecoderMetrics(Collector):
    """Exports the counts of `core.decoding`, by the reason for which a process ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "sagittal_image_decoders_ended",
            "Processes that ended while they decoded an image: killed after decode_seconds, or died by themselves.",
            ["reason"],
            registry=None,
        )
        self._shown = dict.fromkeys(ENDINGS, 0)
        self._lock = Lock()
        self.metrics = (self._ended,)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Returns the present counts."""
        with self._lock:
            for reason, total in ended_decoders().items():
                self._ended.labels(reason).inc(total - self._shown[reason])
                self._shown[reason] = total
            return list(self._ended.collect())
