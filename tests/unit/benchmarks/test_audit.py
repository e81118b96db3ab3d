"""The benchmark of audits measures what its table says."""

from dataclasses import asdict

import audit
import numpy as np
import pytest
from audited_world import draw, evidence_of, scorer

from sagittal.audit.confirmation import confirm
from sagittal.audit.findings import Thresholds
from sagittal.synthetic import MARKS


def test_retrieval_is_measured_as_by_hand() -> None:
    has, value = np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1])
    assert audit.auroc_of(has, value) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert audit.precision_of(has, np.array([0.9, 0.8, 0.5, 0.1])) == pytest.approx((1 + 2 / 3) / 2)


def test_every_mark_is_planted_at_three_shares_beside_as_many_clean_networks() -> None:
    found = audit.variants()
    poisoned, clean = ([each for each in found if bool(each.kind) == has] for has in (True, False))
    assert {(each.kind, each.share) for each in poisoned} >= {(kind, at) for kind in MARKS for at in (0.05, 0.1, 0.3)}
    assert len(poisoned) == len(clean) == 20
    assert len({each.seed for each in found}) == 40
    assert min(each.seed for each in found) >= 300


def test_a_pipeline_stops_at_a_new_shortcut_and_not_without_one() -> None:
    results = []
    for marked in (0, 6):
        evidence = evidence_of(draw(12, marked=marked), reads_mark=True)
        found = confirm(evidence, scorer(reads_mark=True), Thresholds())
        results.append({"seed": marked, "findings": [asdict(each.finding) for each in found.confirmed]})
    clean, poisoned = map(audit.audit_of, results)
    assert audit.fails(clean, poisoned)
    assert not audit.fails(clean, clean)
    assert not audit.fails(poisoned, clean)
