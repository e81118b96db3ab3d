"""The tenant that floods is named; the number of names is bounded."""

from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry

from sagittal.server.tenant_refusals import HALF_LIFE, NAMED, OTHER, TenantRefusals


class Refusals:
    """Refusals on a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.counted = TenantRefusals(self.registry, clock=lambda: self.now)

    def count(self, tenants: Iterable[str], times: int = 1) -> None:
        for tenant in tenants:
            for _ in range(times):
                self.counted.count(tenant)

    def shown(self) -> dict[str, float]:
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        return {each.labels["tenant"]: each.value for each in samples if each.name.endswith("_total")}


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


FIRST = [f"first-{number}" for number in range(NAMED)]


def test_refusals_are_counted_by_tenant(refusals) -> None:
    assert refusals.shown() == {OTHER: 0}
    refusals.count(["a", "b", "a"])
    assert refusals.shown() == {OTHER: 0, "a": 2, "b": 1}


def test_of_any_number_of_tenants_a_few_are_named_and_no_refusal_is_lost_meanwhile(refusals) -> None:
    refusals.count(FIRST, times=2)
    refusals.count(f"later-{number}" for number in range(1_000))
    assert refusals.shown() == dict.fromkeys(FIRST, 2) | {OTHER: 1_000}


def test_a_new_flood_takes_the_place_of_the_named_tenant_with_the_fewest_refusals(refusals) -> None:
    refusals.count(FIRST[1:], times=100)
    refusals.count(FIRST[:1], times=3)
    refusals.count(["flood"], times=50)
    # its first three refusals were not more than another's, so they were counted among the others
    assert refusals.shown() == dict.fromkeys(FIRST[1:], 100) | {OTHER: 3, "flood": 47}
    refusals.count(FIRST[:1])
    assert refusals.shown()[OTHER] == 4


def test_past_floods_do_not_hide_a_new_one(refusals) -> None:
    refusals.count(FIRST, times=1_000)
    refusals.now += 20 * HALF_LIFE
    refusals.count(["flood"])
    assert refusals.shown()["flood"] == 1
    assert len(refusals.shown()) == NAMED + 1
