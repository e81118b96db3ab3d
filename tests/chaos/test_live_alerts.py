"""The program of `make live-alerts` fits the chart's alerts; it runs for minutes, and is not run here."""

import yaml
from chaos.live_alerts import ALERTS, FAULTS, quick, quick_rules


def test_every_fault_is_for_an_alert_that_the_chart_has() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
    assert {alert for alert, _ in FAULTS} <= alerts
    assert len(FAULTS) >= 10
    assert all(fault.__doc__ for _, fault in FAULTS)


def test_durations_are_shortened_and_nothing_else() -> None:
    assert quick("rate(a_5m[15m] offset 1d) > 60 * 60") == "rate(a_5m[15000ms] offset 1440000ms) > 60 * 60"
    assert quick("5m") == "5000ms"
    assert "[15m]" not in quick_rules()
