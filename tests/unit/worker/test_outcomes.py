"""What a worker tells the registry of the jobs that end on it."""

from collections.abc import Callable

import pytest
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import JobState, NewJob
from sagittal.registry.protocol import Outcomes
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports


class Registry:
    """Keeps what is reported, and answers with a reason."""

    def __init__(self) -> None:
        self.reports: list[Outcomes] = []
        self.moments: list[int] = []
        self.reason = ""

    def report(self, worker: str, moment: int, outcomes: Outcomes) -> str:
        self.reports.append(outcomes)
        self.moments.append(moment)
        return self.reason


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def reports(registry: Registry, metrics: CollectorRegistry) -> OutcomeReports:
    return OutcomeReports(registry, WorkerMetrics.create(metrics), "w")  # type: ignore[arg-type]


def test_ended_jobs_are_reported_once_by_version(reports, registry, metrics, new_job: Callable[..., NewJob]) -> None:
    first, second = new_job(version="1"), new_job(version="2")
    reports.count(first, JobState.COMPLETED, insertion=0.5)
    reports.count(first, JobState.COMPLETED, insertion=0.25)
    reports.count(second, JobState.FAILED, code=code_pb2.INTERNAL)
    reports.send()
    reports.send()
    assert registry.reports == [
        Outcomes(name="model", version="1", completed=2, scored=2, insertion=0.75),
        Outcomes(name="model", version="2", failed=1),
    ]
    assert len(set(registry.moments)) == 2
    by_version = {"model": "model", "version": "1"}
    assert metrics.get_sample_value("sagittal_version_jobs_total", {**by_version, "state": "completed"}) == 2
    assert metrics.get_sample_value("sagittal_version_insertion_auc_sum", by_version) == 0.75


def test_cancelled_jobs_and_mistakes_of_callers_say_nothing_of_a_version(reports, registry, new_job) -> None:
    reports.count(new_job(), JobState.CANCELLED)
    reports.count(new_job(), JobState.FAILED, code=code_pb2.INVALID_ARGUMENT)
    reports.send()
    assert registry.reports == []


def test_a_rollback_is_logged_with_its_reason(reports, registry, new_job, capsys) -> None:
    registry.reason = "5 of 20 jobs failed"
    reports.count(new_job(version="2"), JobState.FAILED, code=code_pb2.INTERNAL)
    reports.send()
    said = capsys.readouterr().out
    assert "canary-rolled-back" in said
    assert "5 of 20 jobs failed" in said


def test_what_cannot_be_reported_fails_the_next_report_in_nothing(reports, registry, new_job, monkeypatch) -> None:
    def away(*_: object) -> str:
        raise Unavailable("gone", retry_after=1)

    reports.count(new_job(), JobState.COMPLETED)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "report", away)
        with pytest.raises(Unavailable):
            reports.send()
    reports.count(new_job(), JobState.COMPLETED)
    reports.send()
    assert [each.completed for each in registry.reports] == [1]
