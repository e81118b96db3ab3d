"""Traces and logs of real programs: one trace tells a job's life, and nothing tells what is in a picture or a token."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import known_models
import numpy as np
import pytest
from e2e_stack import Stack, wait_until
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp_receiver import Collector, Received, collecting
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sagittal.client import Client, IGOSPlusPlus, InvalidRequest, JobCancelled, Unauthenticated
from sagittal.process.embedded import EmbeddedValkey

TOKEN = "a-token-that-nobody-may-read"  # noqa: S105 - of this test alone
MARK = "what-only-the-picture-says"
EXPLAIN = "sagittal.v1.ExplanationService/Explain"
QUICK = IGOSPlusPlus(mask_size=7, iterations=3, points=2)
ENDLESS = IGOSPlusPlus(mask_size=7, iterations=1000, points=100, tolerance=0)


def picture() -> bytes:
    """Returns a PNG that carries a mark in its text."""
    pixels = known_models.image(known_models.LEFT).permute(1, 2, 0).numpy()
    text = PngInfo()
    text.add_text("Comment", MARK)
    buffer = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation that traces, asks for tokens, and logs all that it can."""
    tokens = {hashlib.sha256(TOKEN.encode()).hexdigest(): {"tenant": "lab"}}
    telemetry = {
        "SAGITTAL_TRACING__ENDPOINT": collector.endpoint,
        "SAGITTAL_TRACING__HEADERS": json.dumps({"x-collector-token": "spans"}),
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "SAGITTAL_LOG_LEVEL": "debug",
    }
    with EmbeddedValkey() as valkey:
        stack = Stack(tmp_path_factory.mktemp("traced"), valkey.url)
        try:
            stack.start_service(SAGITTAL_TOKENS=json.dumps(tokens), **telemetry)
            worker = stack.start_worker(**telemetry)
            wait_until(lambda: "model-ready" in worker.text, "a worker with a model")
            yield stack
        finally:
            stack.stop()


@pytest.fixture
def client(traced: Stack, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client in an application that sends its own traces to the same collector."""
    provider = TracerProvider(resource=Resource({"service.name": "application"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=collector.endpoint, insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    with Client(traced.address, token=TOKEN) as connected:
        yield connected
    provider.shutdown()


def one(collector: Collector, name: str, **attributes: object) -> Received:
    """Waits for the one span of a name."""
    wait_until(lambda: collector.named(name, **attributes), f"a span {name} with {attributes}")
    (span,) = collector.named(name, **attributes)
    return span


def test_one_trace_tells_a_jobs_life(client: Client, collector: Collector, traced: Stack) -> None:
    with client.stream(picture(), model="left", target=1, method=QUICK, cache="bypass") as events:
        job = events.explanation().job_id
    attempt = one(collector, "attempt igos++", sagittal_job_id=job)
    submit, waited = one(collector, "submit", sagittal_job_id=job), one(collector, "queue", sagittal_job_id=job)
    wait_until(lambda: len([s for s in collector.named("engine") if s.parent == attempt.id]) == 1, "the engine's span")
    (engine,) = [span for span in collector.named("engine") if span.parent == attempt.id]
    wait_until(lambda: [s for s in collector.named(EXPLAIN) if s.id == submit.parent], "the service's span")
    (served,) = [span for span in collector.named(EXPLAIN) if span.id == submit.parent]
    (called,) = [span for span in collector.named(EXPLAIN) if span.id == served.parent]

    assert [span.program for span in (called, served, submit, waited, attempt, engine)] == [
        "application",
        "sagittal-service",
        "sagittal-service",
        "sagittal-worker",
        "sagittal-worker",
        "sagittal-worker",
    ]
    assert {span.trace for span in (called, served, submit, waited, attempt, engine)} == {called.trace}
    assert waited.parent == attempt.parent == submit.id
    assert waited.raw.end_time_unix_nano <= attempt.raw.start_time_unix_nano + 50_000_000
    assert attempt.attributes["sagittal.job.state"] == served.attributes["sagittal.job.state"] == "completed"
    assert {"prediction", "mask", "insertion curve", "deletion curve"} <= attempt.notes.keys()
    assert {"accepted", "started", "prediction", "completed"} <= served.notes.keys()
    assert engine.attributes["sagittal.engine.batches"] >= 3
    assert engine.attributes["sagittal.engine.device_seconds"] > 0
    assert engine.attributes["sagittal.evaluations"] > engine.attributes["sagittal.evaluations.gradient"] > 0
    assert called.attributes["rpc.grpc.status_code"] == served.attributes["rpc.grpc.status_code"] == 0
    assert collector.metadata[0].get("x-collector-token") in ("spans", None)

    lines = [json.loads(line) for program in traced.programs for line in program.text.splitlines()]
    about = [line for line in lines if line.get("job_id") == job]
    assert {"job-accepted", "job-started"} <= {line["event"] for line in about}
    assert {line["trace_id"] for line in about} == {called.trace}


def test_a_dropped_stream_is_marked_as_cancelled_all_the_way_down(client: Client, collector: Collector) -> None:
    stream = client.stream(picture(), model="left", target=1, method=ENDLESS, cache="bypass")
    job = next(stream).job_id
    wait_until(lambda: client.job(job).state == "running", "the job to run")
    stream.close()
    attempt = one(collector, "attempt igos++", sagittal_job_id=job)
    submit = one(collector, "submit", sagittal_job_id=job)
    assert attempt.attributes["sagittal.job.state"] == "cancelled"
    assert attempt.notes["cancellation received"]["sagittal.cancelled.reason"] in ("caller went away", "requested")
    assert not attempt.failed
    wait_until(lambda: [s for s in collector.named(EXPLAIN) if s.id == submit.parent], "the service's span")
    (served,) = [span for span in collector.named(EXPLAIN) if span.id == submit.parent]
    (called,) = [span for span in collector.named(EXPLAIN) if span.id == served.parent]
    assert served.attributes["rpc.grpc.status_code"] == called.attributes["rpc.grpc.status_code"] == 1
    assert served.notes["call cancelled"]["reason"] == "caller went away"


def test_a_cancelled_job_says_so_to_those_who_watch(client: Client, collector: Collector) -> None:
    stream = client.stream(picture(), model="left", target=1, method=ENDLESS, cache="bypass", seed=3)
    job = next(stream).job_id
    client.cancel(job)
    with pytest.raises(JobCancelled):
        list(stream)
    submit = one(collector, "submit", sagittal_job_id=job)
    wait_until(lambda: [s for s in collector.named(EXPLAIN) if s.id == submit.parent], "the service's span")
    (served,) = [span for span in collector.named(EXPLAIN) if span.id == submit.parent]
    assert served.attributes["sagittal.job.state"] == "cancelled"
    assert served.notes["cancelled"]["sagittal.cancelled.reason"] == "requested"
    (called,) = [span for span in collector.named(EXPLAIN) if span.id == served.parent]
    assert called.attributes["rpc.grpc.status_code"] == 1


def test_neither_logs_nor_spans_carry_pictures_or_tokens(client: Client, collector: Collector, traced: Stack) -> None:
    secret = picture()
    client.explain(secret, model="left", method=QUICK, cache="refresh")
    client.predict(secret, model="left")
    with pytest.raises(InvalidRequest):
        client.explain(secret[:-200] + b"cut" + MARK.encode(), model="left")
    with pytest.raises(InvalidRequest):
        client.explain(b"no picture but " + MARK.encode(), model="left")
    with Client(traced.address, token=f"{TOKEN}-but-wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.predict(secret, model="left")
    one(collector, "sagittal.v1.ModelService/Predict", rpc_grpc_status_code=16, server_address=traced.address)
    said = "".join(program.text for program in traced.programs)
    said += "".join(str(span.raw) for span in collector.spans)
    assert "job-refused" in said
    for hidden in (MARK, TOKEN, "x-collector-token"):
        encodings = (hidden, hidden.encode().hex(), base64.b64encode(hidden.encode()).decode().rstrip("="))
        assert not [form for form in encodings if form in said]
    for piece in (secret[:48], secret[-48:]):
        assert repr(piece)[2:-1] not in said
        assert piece.hex() not in said
        assert base64.b64encode(piece).decode() not in said


def test_a_collector_that_is_away_costs_nothing_but_a_line_in_the_log(tmp_path: Path) -> None:
    with EmbeddedValkey() as valkey:
        stack = Stack(tmp_path, valkey.url)
        nowhere = {"SAGITTAL_TRACING__ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        try:
            service = stack.start_service(SAGITTAL_TRACING__EXPORT_TIMEOUT="0.5", **nowhere)
            stack.start_worker(SAGITTAL_TRACING__EXPORT_TIMEOUT="0.5", **nowhere)
            stack.wait_for_model("left")
            with Client(stack.address) as plain:
                assert plain.explain(picture(), model="left", method=QUICK).insertion is not None
            wait_until(lambda: "spans-not-exported" in service.text, "the service to say so")
            assert service.stop() == 0
            assert all(json.loads(line)["event"] for line in service.text.splitlines())
        finally:
            stack.stop()
