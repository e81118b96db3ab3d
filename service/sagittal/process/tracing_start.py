"""Starts tracing according to the settings."""

from sagittal.process.tracing import NO_TRACER, Tracer, TracingSettings


class TracingMissing(Exception):
    """Tracing is on, but its libraries are not installed."""


def start_tracing(settings: TracingSettings, *, program: str, instance: str) -> Tracer:
    """Returns a tracer that exports if an endpoint is set, otherwise one that does nothing.

    Raises:
        TracingMissing: the extra `tracing` is not installed.
    """
    if not settings.endpoint:
        return NO_TRACER
    try:
        from sagittal.process.tracing_otlp import OtlpTracer  # noqa: PLC0415 - the extra is optional
    except ModuleNotFoundError as error:
        raise TracingMissing(
            f"SAGITTAL_TRACING__ENDPOINT is set, but {error.name} is not installed: pip install 'sagittal[tracing]'"
        ) from error
    return OtlpTracer(settings, program=program, instance=instance)
