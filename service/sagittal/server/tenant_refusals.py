"""Counts refusals by tenant with a bounded number of labels, so that an alert can name the tenant that floods."""

import time
from collections import Counter as Counts
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

#: Largest number of tenants that a replica names at the same time.
NAMED = 10

#: Label of the tenants that are not named. No tenant has it, because a tenant's name has no parentheses.
OTHER = "(other)"

#: Time after which the refusals of a tenant count half in the choice of named tenants, in seconds.
HALF_LIFE = 600.0


class TenantRefusals:
    """Counter of refusals. It names the tenants with the most refusals of late; others share one series.

    A tenant that is named no longer loses its series. If it is named again, its counter starts at 0, which Prometheus
    takes for a restart.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """Registers the metric."""
        self._counter = Counter(
            "sagittal_tenant_refusals",
            f"Requests refused because a limit was reached, for the {NAMED} tenants with the most of late; "
            f"those of other tenants have the label {OTHER}.",
            ["tenant"],
            registry=registry,
        )
        self._counter.labels(OTHER)  # starts at 0
        self._clock = clock
        self._recent: Counts[str] = Counts()
        self._named: set[str] = set()
        self._halved = clock()

    def count(self, tenant: str) -> None:
        """Counts a refusal."""
        self._forget_half()
        self._recent[tenant] += 1
        if tenant not in self._named:
            self._name(tenant)
        self._counter.labels(tenant if tenant in self._named else OTHER).inc()

    def _name(self, tenant: str) -> None:
        """Names a tenant if there is room, or if it has more recent refusals than a named one."""
        if len(self._named) == NAMED:
            fewest = min(self._named, key=lambda each: self._recent[each])
            if self._recent[tenant] <= self._recent[fewest]:
                return
            self._named.remove(fewest)
            self._counter.remove(fewest)
        self._named.add(tenant)

    def _forget_half(self) -> None:
        passed = int((self._clock() - self._halved) / HALF_LIFE)
        if passed:
            self._halved += passed * HALF_LIFE
            self._recent = Counts({tenant: left for tenant, n in self._recent.items() if (left := n >> passed)})
