"""An estimate has a price if an hour of a worker has one."""

import json

import pytest

from sagittal.client import Client
from sagittal.client.estimates import Estimate


@pytest.fixture
def known(monkeypatch):
    """What the service answers: half an hour of a worker."""
    found = Estimate(
        basis="same_setting",
        evaluations=550_000,
        worker_seconds=1800.0,
        wall_seconds=900.0,
        ready_workers=2,
        queued_evaluations=0,
    )
    asked = {}
    monkeypatch.setattr(Client, "estimate", lambda _client, **options: asked.update(options) or found)
    return asked


def test_the_price_of_explanations_is_that_of_the_workers_time(run, known):
    result = run("estimate", "--images", 1000, "--model", "lamp", "--price-per-hour", 2.5)
    assert "  price 1.25, at 2.5 for an hour of one worker\n" in result.output
    assert known["images"] == 1000
    assert "price_per_hour" not in known, "the service knows nothing of prices"
    printed = json.loads(run("estimate", "--model", "lamp", "--price-per-hour", 2.5, "--json").output)
    assert printed["price"] == 1.25


def test_without_a_price_of_an_hour_there_is_none(run, known):
    assert "price" not in run("estimate", "--model", "lamp").output
    assert "price" not in json.loads(run("estimate", "--model", "lamp", "--json").output)


def test_a_price_that_is_none_is_refused(run, known):
    result = run("estimate", "--model", "lamp", "--price-per-hour", 0)
    assert result.exit_code == 2
    assert "--price-per-hour" in result.output
