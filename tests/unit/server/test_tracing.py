import sys

import pytest
from pydantic import ValidationError

from sagittal.process.logs import trace_id
from sagittal.process.tracing import NO_SPAN, NO_TRACER, TracingSettings, current_span, within
from sagittal.process.tracing_start import TracingMissing, start_tracing

ON = TracingSettings(endpoint="http://127.0.0.1:4317")


def is_sampled(context: str) -> bool:
    return bool(int(context.split("-")[3][:2], 16) & 1)


def test_tracing_is_off_unless_an_endpoint_is_set() -> None:
    assert start_tracing(TracingSettings(), program="p", instance="i") is NO_TRACER
    span = NO_TRACER.span("queue")
    assert span.context == span.child("inner").context == ""


def test_tracing_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sagittal.process.tracing_otlp", None)
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
                assert inner.context.split("-")[1] == outer.context.split("-")[1]
            assert current_span() is outer
        assert current_span() is NO_SPAN
    finally:
        tracer.close()


def test_a_callers_trace_is_gone_on_with_and_its_sampling_kept() -> None:
    tracer = start_tracing(ON.model_copy(update={"sample_ratio": 0.0}), program="p", instance="i")
    try:
        trace, sampled = "ab" * 16, f"00-{'ab' * 16}-{'cd' * 8}-01"
        span = tracer.span("served", parent=sampled)
        assert span.context.split("-")[1] == trace
        assert is_sampled(span.context)
        assert not is_sampled(tracer.span("of our own").context)
    finally:
        tracer.close()


def test_what_a_callers_tracing_system_added_stays_with_all_spans_within() -> None:
    tracer = start_tracing(ON.model_copy(update={"sample_ratio": 0.0}), program="p", instance="i")
    try:
        span = tracer.span("served", parent=f"00-{'ab' * 16}-{'cd' * 8}-01 vendor=a:b,other=1")
        assert span.context.partition(" ")[2] == span.child("inner").context.partition(" ")[2] == "vendor=a:b,other=1"
        damaged = tracer.span("served", parent=f"00-{'ab' * 16}-{'cd' * 8}-01 no pairs")
        assert trace_id(damaged.context) == "ab" * 16
        assert " " not in damaged.context
    finally:
        tracer.close()
