"""A worker announces itself again where it may not be known: after a connection was lost."""

import threading
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from sagittal.core.errors import Unavailable
from sagittal.worker import process
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.process import Worker
from sagittal.worker.settings import WorkerSettings

#: Longest wait for anything here, in seconds; less than the interval of announcements.
PATIENCE = 60.0


def test_a_worker_announces_itself_when_a_lost_connection_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "AWAY_PAUSE", 0.01)
    announced, lost = threading.Semaphore(0), threading.Event()

    def listen(*, block_seconds: float) -> bool:
        if not lost.is_set():
            lost.set()
            raise Unavailable("the server is restarted")
        worker._stopped.wait(0.01)
        return True  # a new subscription counts as a notification

    queue = SimpleNamespace(listen=listen, heartbeat=lambda leases: ([], []), attachment=None)
    models = SimpleNamespace(announce=lambda ttl: announced.release(), wake=lambda: None)
    worker = Worker(
        WorkerSettings(announce_seconds=600.0),
        queue,
        models,
        WorkerMetrics.create(CollectorRegistry()),
        concepts=SimpleNamespace(),
        outcomes=SimpleNamespace(send=lambda: None),
    )
    beats, listens = (threading.Thread(target=each) for each in (worker._keep_leases, worker._watch_cancellations))
    beats.start()
    assert announced.acquire(timeout=PATIENCE)
    assert not announced.acquire(timeout=0.01)
    listens.start()
    assert announced.acquire(timeout=PATIENCE)
    worker._stopped.set()
    for thread in (beats, listens):
        thread.join(PATIENCE)
