import json
import re
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from packaging_support import CHART, ROOT, dashboard_queries, load_script
from prometheus_client import CollectorRegistry, generate_latest

from sagittal.worker.metrics import WorkerMetrics

ALERTS = CHART / "files" / "alerts.yaml"
ALERT_TESTS = sorted((ROOT / "tests" / "packaging").glob("*alerts_test.yaml"))
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
#: Labels that take few values. Jobs and callers are none of them.
BOUNDED = {
    "rpc",
    "code",
    "model",
    "method",
    "lane",
    "reason",
    "state",
    "kind",
    "version",
    "call",
    "operation",
    "how",
    "outcome",
    "device",
    "process",
    "name",  # of background tasks
    "tenant",  # of `TenantRefusals`, which names a few
    "reply",
    "meaning",
}
#: Metrics of redis_exporter, of dcgm-exporter and of Prometheus itself that alerts and dashboard use.
EXPORTED = {
    "redis_memory_used_bytes",
    "redis_memory_max_bytes",
    "up",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
}


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    yield from dashboard_queries()


def exported() -> dict[str, set[str]]:
    """Returns the labels of every series that the programs export."""
    script = load_script("reference_docs")
    series: dict[str, set[str]] = {}
    for registry in (script.service_registry(), script.worker_registry()):
        for metric in script.metrics_of(registry):
            name, labels = metric._name, set(metric._labelnames)
            ends = {"counter": ["_total"], "histogram": ["_sum", "_count", "_bucket"]}.get(metric._type, [""])
            for end in ends:
                series.setdefault(name + end, set()).update(labels | ({"le"} if end == "_bucket" else set()))
    return series


def selectors(node) -> Iterator:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for part in ("expr", "lhs", "rhs", "vector_selector", "vs"):
        child = getattr(node, part, None)
        if child is not None:
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_asks_for_what_the_programs_export(where: str, query: str) -> None:
    series = exported()
    found = list(selectors(promql_parser.parse(query)))
    assert found, where
    for selector in found:
        assert selector.name in series or selector.name in EXPORTED, f"{where}: nothing exports {selector.name}"
        if selector.name in series:
            known = series[selector.name] | {"namespace", "pod", "job"}
            assert {matcher.name for matcher in selector.matchers.matchers} <= known, where


def test_alerts_fire_when_they_should(promtool: str) -> None:
    for command in (["check", "rules", ALERTS], ["test", "rules", *ALERT_TESTS]):
        done = subprocess.run([promtool, *command], check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def promtool_test(promtool: str, directory: Path, **test: Any) -> None:
    """Runs one test of promtool."""
    file = directory / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [{"interval": "1m", **test}]}))
    done = subprocess.run([promtool, "test", "rules", file], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def replica(pod: str, depth: str, running: str, up: str) -> list[dict[str, str]]:
    """Returns the series of a replica of the service, as promtool notes their values; `_` where it is not scraped."""
    queue = f'{{namespace="ns", pod="{pod}", model="efficientnet-lite0", lane="batch"}}'
    return [
        {"series": f"sagittal_queue_depth{queue}", "values": depth},
        {"series": f"sagittal_queue_running{queue}", "values": running},
        {"series": f'sagittal_queue_up{{namespace="ns", pod="{pod}"}}', "values": up},
    ]


def test_workers_are_scaled_by_each_job_once_whenever_the_replicas_are_scraped(promtool, render, tmp_path) -> None:
    (query,) = (
        document["spec"]["triggers"][0]["metadata"]["query"]
        for document in render("gpu-values.yaml")
        if document["kind"] == "ScaledObject" and document["metadata"]["name"].endswith("small")
    )
    promtool_test(
        promtool,
        tmp_path,
        input_series=[
            # 20 jobs wait; then workers take 8 of them, which a replica shows as soon as it is scraped
            *replica("early", "20 _ 20 _ 20 _", "0 _ 0 _ 0 _", "1 _ 1 _ 1 _"),
            *replica("late", "_ 12 _ 12 _ 12", "_ 8 _ 8 _ 8", "_ 1 _ 1 _ 1"),
            # and one has lost Redis while 500 jobs waited
            *replica("lost", "500x5", "8x5", "0x5"),
        ],
        promql_expr_test=[
            {"expr": query, "eval_time": f"{minute}m", "exp_samples": [{"value": 20}]} for minute in range(6)
        ],
    )
    promtool_test(
        promtool,
        tmp_path,
        input_series=[
            {"series": 'sagittal_queue_up{namespace="ns", pod="a"}', "values": "1x5 0x5"},
            {"series": 'sagittal_queue_up{namespace="elsewhere", pod="a"}', "values": "1x10"},
        ],
        promql_expr_test=[
            {"expr": query, "eval_time": "3m", "exp_samples": [{"value": 0}]},
            {"expr": query, "eval_time": "9m", "exp_samples": []},  # KEDA takes nothing for an error, not for zero
        ],
    )


def rendered_rules(render, *options: str) -> dict[str, dict]:
    """Returns the alert rules that the chart installs, by name."""
    (rule,) = (d for d in render("gpu-values.yaml", *options) if d["kind"] == "PrometheusRule")
    return {rule["alert"]: rule for group in rule["spec"]["groups"] for rule in group["rules"]}


def test_a_release_watches_its_own_namespace_and_jobs(render) -> None:
    installed = rendered_rules(render)
    assert {rule["alert"] for rule in rules()} == installed.keys()
    assert installed["SagittalServiceAbsent"]["expr"] == 'absent(sagittal_queue_up{namespace="ns"})'
    assert 'job=~"rel-sagittal-headless|ns/rel-sagittal-worker"' in installed["SagittalPodDown"]["expr"]
    monitors = [d["metadata"]["name"] for d in render("gpu-values.yaml") if d["kind"] == "PodMonitor"]
    assert monitors == ["rel-sagittal-worker"]
    written = {rule["alert"]: rule for rule in rules()}
    assert installed["SagittalJobsBuried"] == written["SagittalJobsBuried"]


def test_a_release_whose_workers_may_all_be_scaled_to_zero_does_not_miss_them(render) -> None:
    assert "SagittalNoWorker" in rendered_rules(render)
    assert "SagittalNoWorker" not in rendered_rules(render, "workers[1].keda.minReplicas=0")


def test_a_rule_can_be_switched_off_and_changed(render) -> None:
    rules = "prometheusRule.rules"
    installed = rendered_rules(
        render,
        f"{rules}.SagittalRedisSlow.enabled=false",
        f"{rules}.SagittalOldestJobTooOld.threshold=90",
        f"{rules}.SagittalRedisErrors.threshold=0.25",
        f"{rules}.SagittalQueueGrowing.for=1h",
        f"{rules}.SagittalQueueGrowing.severity=critical",
        "prometheusRule.runbookUrl=https://example.org/runbooks/",
    )
    assert "SagittalRedisSlow" not in installed
    oldest = installed["SagittalOldestJobTooOld"]
    assert 'lane="interactive"}) > 90\n' in oldest["expr"]
    assert 'lane="batch"}) > 90 * 60\n' in oldest["expr"]
    assert oldest["annotations"]["threshold"] == "90"
    assert installed["SagittalRedisErrors"]["expr"].count("> 0.25") == 2
    growing = installed["SagittalQueueGrowing"]
    assert (growing["for"], growing["labels"]["severity"]) == ("1h", "critical")
    assert growing["annotations"]["runbook_url"] == "https://example.org/runbooks/queue-growing"


def test_the_burn_rate_of_faithfulness_can_be_set_in_both_windows(render) -> None:
    changes = "prometheusRule.rules.SagittalExplanationsUnfaithful"
    rule = rendered_rules(render, f"{changes}.threshold=10")["SagittalExplanationsUnfaithful"]
    assert rule["expr"].count("/ 0.05 > 10\n") == 2
    assert rule["annotations"]["threshold"] == "10"
    assert "SagittalExplanationsUnfaithful" not in rendered_rules(render, f"{changes}.enabled=false")


def test_a_rule_that_does_not_exist_cannot_be_changed(render) -> None:
    with pytest.raises(ValueError, match="SagittalRedisSlwo"):
        rendered_rules(render, "prometheusRule.rules.SagittalRedisSlwo.enabled=false")


def test_the_threshold_of_a_rule_is_in_its_expression() -> None:
    for rule in rules():
        threshold = rule["annotations"].get("threshold")
        if threshold is not None:
            assert re.search(rf"[<>] {re.escape(threshold)}\b", rule["expr"]), rule["alert"]


def test_workers_can_be_scaled_by_the_evaluations_that_wait(promtool, render, tmp_path) -> None:
    """A hundred cheap jobs and a costly one: as many workers as their work needs, with 8 jobs a worker to divide by."""
    documents = render("gpu-values.yaml", "workers[1].keda.evaluationsPerWorker=1000")
    trigger = next(
        document["spec"]["triggers"][0]["metadata"]
        for document in documents
        if document["kind"] == "ScaledObject" and document["metadata"]["name"].endswith("small")
    )
    labels = '{namespace="ns", pod="a", model="efficientnet-lite0", lane="batch"}'
    promtool_test(
        promtool,
        tmp_path,
        input_series=[
            {"series": f"sagittal_queue_depth{labels}", "values": "101x5"},
            {"series": f"sagittal_queue_evaluations{labels}", "values": "3000x5"},
            {"series": f"sagittal_queue_running{labels}", "values": "0x5"},
            {"series": 'sagittal_queue_up{namespace="ns", pod="a"}', "values": "1x5"},
        ],
        promql_expr_test=[
            {
                "expr": f"{trigger['query']} / {trigger['threshold']}",
                "eval_time": "3m",
                "exp_samples": [{"value": 3}],
            }
        ],
    )


def test_counters_that_alerts_watch_are_shown_as_0_before_the_first() -> None:
    script = load_script("reference_docs")
    registry = CollectorRegistry()
    WorkerMetrics.create(registry).expect("m", ["igos"])
    shown = "".join(generate_latest(each).decode() for each in (registry, script.service_registry()))
    for series in (
        'sagittal_jobs_ended_by_queue_total{reason="buried"} 0.0',
        'sagittal_jobs_rejected_total{reason="QUEUE_FULL"} 0.0',
        "sagittal_leases_lost_total 0.0",
        'sagittal_tenant_refusals_total{tenant="(other)"} 0.0',
        'sagittal_jobs_total{method="igos",model="m",state="failed"} 0.0',
        'sagittal_baseline_still_confident_total{method="igos",model="m"} 0.0',
        'sagittal_curves_hardly_part_total{method="igos",model="m"} 0.0',
        'sagittal_retries_total{model="m"} 0.0',
    ):
        assert series in shown


def test_every_alert_is_tested_and_has_a_runbook() -> None:
    tested = "".join(path.read_text() for path in ALERT_TESTS)
    operations = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert f"alertname: {rule['alert']}" in tested
        assert rule["alert"] in operations
        assert rule["labels"]["severity"] in {"warning", "critical"}
        runbook = ROOT / rule["annotations"]["runbook"]
        assert runbook.exists(), runbook
        assert rule["alert"] in runbook.read_text()


def test_every_runbook_is_an_alerts() -> None:
    written = {path.name for path in (ROOT / "docs" / "runbooks").glob("*.md")} - {"index.md"}
    assert written == {(ROOT / rule["annotations"]["runbook"]).name for rule in rules()}


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = " ".join(query for _, query in queries())
    # rpcs_started less rpcs_handled, and jobs_running, say again what streams and the queue say
    spared = {"sagittal_rpcs_started_total", "sagittal_jobs_running"}
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()} - spared
    assert not {name for name in names if name not in asked}


def test_panels_are_named_placed_and_apart() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(product(columns, lines))
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert all(target["legendFormat"] for target in panel["targets"])


def test_reference_tables_are_current() -> None:
    assert load_script("reference_docs").stale() == {}


def test_every_metric_follows_the_conventions() -> None:
    script = load_script("reference_docs")
    for registry in (script.service_registry(), script.worker_registry()):
        for metric in script.metrics_of(registry):
            assert metric._name.startswith("sagittal_")
            assert metric._documentation.endswith(".")
            assert set(metric._labelnames) <= BOUNDED


def test_promtool_finds_the_names_well_chosen(promtool: str) -> None:
    script = load_script("reference_docs")
    for registry in (script.service_registry(), script.worker_registry()):
        for metric in script.metrics_of(registry):
            if metric._labelnames:
                metric.labels(*metric._labelnames)
        text = generate_latest(registry)
        done = subprocess.run([promtool, "check", "metrics"], check=False, input=text, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
