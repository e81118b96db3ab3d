"""What a run of the tests says about programs that were not there."""

import peers_support

REASONS = [
    "Skipped: promtool is not installed: apt-get install prometheus",
    "Skipped: promtool is not installed: apt-get install prometheus",
    "Skipped: mlflow is not installed: pip install '.[mlflow]'",
    "Skipped: there are GPUs",
]


def test_one_line_says_how_many_were_skipped_for_what_and_what_adds_it():
    assert peers_support.describe_missing(REASONS, redis=True) == (
        "2 skipped for want of promtool (apt-get install prometheus); "
        "1 skipped for want of mlflow (pip install '.[mlflow]')"
    )
    assert peers_support.describe_missing(REASONS[3:], redis=True) == ""


def test_a_server_that_stood_in_for_another_is_named(monkeypatch):
    monkeypatch.setattr(peers_support, "oldest_valkey", lambda: "valkey-server")
    assert peers_support.describe_missing([], redis=False) == "Valkey 8.1 stood in for Redis 7.0"
