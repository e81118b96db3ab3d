import http.client
import json
import urllib.request
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter

from sagittal.process.logs import configure_logging, new_trace_context, trace_context, trace_id
from sagittal.process.probes import LIVE, READY, start_metrics_server

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_json_logs_carry_the_bound_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    structlog.contextvars.bind_contextvars(job_id="j1", trace_id="t1")
    structlog.get_logger().info("job-accepted", model="lamp")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "job-accepted"
    assert (line["job_id"], line["trace_id"], line["model"], line["level"]) == ("j1", "t1", "lamp", "info")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_stack_traces_are_logged_without_local_variables(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format)  # type: ignore[arg-type]

    def fail(picture: str) -> None:
        raise ZeroDivisionError

    try:
        fail("secret" + " picture")
    except ZeroDivisionError:
        structlog.get_logger().exception("failed")
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert "secret picture" not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_drives_no_terminal_and_is_short(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(log_format)  # type: ignore[arg-type]
    evil = "\x1b]0;owned\x07\x9b2J"
    structlog.get_logger().info("job-refused", error=evil, fields=[evil], about={"name": evil}, long="x" * 30_000_000)
    try:
        raise ValueError(evil)
    except ValueError:
        structlog.get_logger().exception("failed")
    text = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "owned" in text
    assert len(text) < 20_000


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_a_valid_trace_is_kept() -> None:
    assert trace_context({"traceparent": TRACE}) == TRACE
    assert trace_id(TRACE) == "ab" * 16


def test_a_tracestate_is_kept_beside_a_valid_trace_alone() -> None:
    context = trace_context({"traceparent": TRACE, "tracestate": "vendor=a:b, other=1"})
    assert context == f"{TRACE} vendor=a:b, other=1"
    assert trace_id(context) == "ab" * 16
    assert trace_context({"traceparent": "nonsense", "tracestate": "vendor=a"}) == ""


@pytest.mark.parametrize("wrong", ["", " ", "a=\n", "a=\u00e4", "a=" + "b" * 511])
def test_a_tracestate_that_is_none_or_too_long_is_dropped(wrong: str) -> None:
    assert trace_context({"traceparent": TRACE, "tracestate": wrong}) == TRACE


@pytest.mark.parametrize("wrong", ["", "nonsense", f"00-{'0' * 32}-{'cd' * 8}-01", TRACE.upper(), TRACE + "-more"])
def test_anything_else_is_no_trace(wrong: str) -> None:
    assert trace_id(wrong) == ""
    assert trace_context({"traceparent": wrong}) == ""
    assert len(trace_id(new_trace_context())) == 32


def test_metrics_are_served_until_they_are_closed() -> None:
    registry = CollectorRegistry()
    Counter("sagittal_things", "Things.", registry=registry).inc()
    server = start_metrics_server("127.0.0.1", 0, registry)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as page:
        assert b"sagittal_things_total 1.0" in page.read()
    server.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10)


def asked(port: int, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, json.load(answer)
    connection.close()
    return found


def test_checks_answer_beside_the_metrics_with_the_reason() -> None:
    wrong = {"why": ""}
    server = start_metrics_server("127.0.0.1", 0, CollectorRegistry(), {LIVE: lambda: "", READY: lambda: wrong["why"]})
    try:
        assert asked(server.port, READY) == (200, {"ok": True, "reason": ""})
        wrong["why"] = "Redis does not answer"
        assert asked(server.port, READY) == (503, {"ok": False, "reason": "Redis does not answer"})
        assert asked(server.port, LIVE) == (200, {"ok": True, "reason": ""})
    finally:
        server.close()
