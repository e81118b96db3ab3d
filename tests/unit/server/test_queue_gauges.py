from threading import Thread

from prometheus_client import CollectorRegistry

from sagittal.core.jobs import Backlog
from sagittal.server.metrics import ServiceMetrics

PLACE = {"model": "m", "lane": "batch"}


def shown(registry: CollectorRegistry) -> tuple[float | None, float | None]:
    """Returns the jobs that wait and those that run, from one scrape."""
    samples = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    return samples.get("sagittal_queue_depth"), samples.get("sagittal_queue_running")


def test_a_scrape_that_comes_while_the_queue_is_shown_counts_no_job_twice(monkeypatch) -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    metrics.backlog({("m", "batch"): Backlog(queued=20, running=0, oldest_seconds=1.0)}, [])
    found: list[tuple[float | None, float | None]] = []
    scrape = Thread(target=lambda: found.append(shown(registry)))
    labels = metrics.queue.metrics[1].labels

    def labels_during_a_scrape(*values: str):
        scrape.start()
        scrape.join(0.3)  # long enough for a scrape that does not wait for the rest
        return labels(*values)

    monkeypatch.setattr(metrics.queue.metrics[1], "labels", labels_during_a_scrape)
    metrics.backlog({("m", "batch"): Backlog(queued=12, running=8, oldest_seconds=1.0)}, [])
    scrape.join()
    assert found == [(12, 8)]


def test_a_model_that_is_gone_is_shown_no_more() -> None:
    registry = CollectorRegistry()
    metrics = ServiceMetrics(registry)
    metrics.backlog({("m", "batch"): Backlog(queued=1, running=0, oldest_seconds=1.0)}, ["m"])
    assert registry.get_sample_value("sagittal_queue_depth", PLACE) == 1
    assert registry.get_sample_value("sagittal_queue_depth", {**PLACE, "lane": "interactive"}) == 0
    metrics.backlog({}, [])
    assert registry.get_sample_value("sagittal_queue_depth", PLACE) is None
