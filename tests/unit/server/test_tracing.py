import sys

import pytest
from pydantic import ValidationError

from sagittal.runtime.tracing import NO_SPAN, NO_TRACER, TracingSettings, current_span, within
from sagittal.runtime.tracing_start import TracingMissing, start_tracing

ON = TracingSettings(endpoint="http://127.0.0.1:4317")


def is_sampled(traceparent: str) -> bool:
    return bool(int(traceparent.rpartition("-")[2], 16) & 1)


def test_tracing_is_off_unless_an_endpoint_is_set() -> None:
    assert start_tracing(TracingSettings(), program="p", instance="i") is NO_TRACER
    span = NO_TRACER.span("queue")
    assert span.traceparent == span.child("inner").traceparent == ""


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagittal.runtime.tracing_otlp", None)
    with pytest.raises(TracingMissing, match=r"pip install 'sagittal\[tracing\]'"):
        start_tracing(ON, program="p", instance="i")


def test_an_endpoint_is_an_address_with_a_scheme() -> None:
    with pytest.raises(ValidationError, match="http://host:port"):
        TracingSettings(endpoint="collector:4317")


def test_a_span_is_current_within_its_context_alone() -> None:
    tracer = start_tracing(ON.model_copy(update={"sample_ratio": 0.0}), program="p", instance="i")
    try:
        with within(tracer.span("outer")) as outer:
            assert current_span() is outer
            with within(outer.child("inner")) as inner:
                assert current_span() is inner
                assert inner.traceparent.split("-")[1] == outer.traceparent.split("-")[1]
            assert current_span() is outer
        assert current_span() is NO_SPAN
    finally:
        tracer.close()


def test_a_callers_trace_is_gone_on_with_and_its_sampling_kept() -> None:
    tracer = start_tracing(ON.model_copy(update={"sample_ratio": 0.0}), program="p", instance="i")
    try:
        trace, sampled = "ab" * 16, f"00-{'ab' * 16}-{'cd' * 8}-01"
        span = tracer.span("served", parent=sampled)
        assert span.traceparent.split("-")[1] == trace
        assert is_sampled(span.traceparent)
        assert not is_sampled(tracer.span("of our own").traceparent)
    finally:
        tracer.close()
