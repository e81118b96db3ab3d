"""Logs of a program: structlog events with job and trace identifiers."""

import logging
import os
import re
import secrets
import socket
import sys
from typing import Any, Literal

import structlog

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")


def configure_logging(log_format: LogFormat = "console", level: LogLevel = "info") -> None:
    """Sends structlog events to standard error, a line each; bound context (job_id, rpc, trace_id) is on every line."""
    # stack traces without local variables: those hold pictures and tokens
    traces = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    plain = structlog.dev.plain_traceback
    renderers: dict[LogFormat, list[Any]] = {
        "json": [structlog.processors.ExceptionRenderer(traces), structlog.processors.JSONRenderer()],
        "console": [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)],
    }
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers[log_format],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def own_name() -> str:
    """Returns a name of this process that no other running one has: its host and number."""
    return f"{socket.gethostname()}-{os.getpid()}"


def trace_context(traceparent: str) -> str:
    """Returns a W3C traceparent: the one given where it is valid, else the beginning of a new trace."""
    if _TRACEPARENT.match(traceparent):
        return traceparent
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id(traceparent: str) -> str:
    """Returns the 32 hexadecimal digits that a W3C traceparent carries; empty where it carries none."""
    match = _TRACEPARENT.match(traceparent)
    return match.group(1) if match else ""
