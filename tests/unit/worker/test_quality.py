"""What is observed of the answers that are served."""

import pytest
from prometheus_client import CollectorRegistry

from sagittal.core.jobs import Job, JobKind, JobState, Lane
from sagittal.explain import events
from sagittal.worker.quality import Quality, QualityMetrics, sufficient_area

LABELS = {"model": "m", "method": "igos++"}


def insertion(*scores: float, auc: float = 0.7) -> events.Curve:
    fractions = tuple(index / (len(scores) - 1) for index in range(len(scores)))
    return events.Curve(events.CurveKind.INSERTION, fractions, scores, auc, auc)


def sufficient(patches: int) -> events.SufficientSet:
    certificate = events.Certificate(events.CertificateLevel.SUFFICIENT, 1, 0.9)
    return events.SufficientSet(7, tuple(range(patches)), 0.9, certificate, None)


def prediction(score: float, baseline_score: float, baseline: str = "blur") -> events.Prediction:
    return events.Prediction(events.ClassScore(1, score), (), baseline_score, baseline)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def serve(registry: CollectorRegistry, *events: events.Event) -> None:
    job = Job(
        job_id="j", kind=JobKind.EXPLANATION, state=JobState.RUNNING, model="m", version="1", method="igos++",
        lane=Lane.BATCH, tenant="t", request_id="", created=0.0, ended=None, deadline=None, attempt=1, worker="w",
        last_sequence=1, cancel_requested=False,
    )  # fmt: skip
    quality = Quality()
    for event in events:
        quality.note(event)
    quality.observe(QualityMetrics.create(registry), job)


def total(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(name, LABELS)


def test_the_sufficient_area_is_where_insertion_first_brings_back_nine_tenths() -> None:
    assert sufficient_area(insertion(0.0, 0.5, 0.73, 0.9, 0.8)) == 0.5
    assert sufficient_area(insertion(0.0, 0.0, 0.0, 0.0, 0.8)) == 1.0


def test_of_several_sufficient_sets_the_smallest_counts(registry: CollectorRegistry) -> None:
    serve(registry, sufficient(10), sufficient(3))
    assert total(registry, "sagittal_sufficient_area_ratio_sum") == pytest.approx(3 / 49)
    assert total(registry, "sagittal_sufficient_area_ratio_count") == 1


def test_an_answer_without_curves_counts_for_no_curve(registry: CollectorRegistry) -> None:
    serve(registry, prediction(0.8, 0.2))
    assert total(registry, "sagittal_insertion_auc_count") is None
    assert total(registry, "sagittal_baseline_score_ratio_sum") == pytest.approx(0.25)


def test_a_baseline_that_does_not_hide_the_class_is_counted(registry: CollectorRegistry) -> None:
    serve(registry, prediction(0.8, 0.7), events.Warning("BASELINE_STILL_CONFIDENT", ""))
    assert total(registry, "sagittal_baseline_still_confident_total") == 1


@pytest.mark.parametrize(
    ("warnings", "counted"), [((), 0), (("CURVES_HARDLY_PART",), 1), (("CURVES_HARDLY_PART",) * 2, 1)]
)
def test_an_explanation_whose_curves_hardly_part_is_counted_once(registry, warnings, counted) -> None:
    serve(registry, insertion(0.0, 1.0), *(events.Warning(reason, "") for reason in warnings))
    assert total(registry, "sagittal_curves_hardly_part_total") == counted
    assert total(registry, "sagittal_insertion_auc_count") == 1


def test_only_the_first_mask_is_observed(registry: CollectorRegistry) -> None:
    other = events.Curve(events.CurveKind.INSERTION, (0.0, 1.0), (0.0, 1.0), 0.1, 0.1, mask_index=1)
    serve(registry, insertion(0.0, 1.0, auc=0.7), other)
    assert total(registry, "sagittal_insertion_auc_sum") == pytest.approx(0.7)
