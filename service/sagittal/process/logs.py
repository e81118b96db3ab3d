"""Logging: structlog events with job and trace identifiers."""

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Mapping, MutableMapping
from io import StringIO
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import ExcInfo

from sagittal.core.text import printable, shortened

LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
#: Bytes of one text in a log line.
MAX_LOGGED = 4_096
#: W3C tracestate: `key=value` pairs separated by commas. Longer ones are dropped, as the standard allows.
_TRACESTATE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,511}")


def configure_logging(log_format: LogFormat = "console", level: LogLevel = "info") -> None:
    """Writes structlog events to standard error, one line each, with the bound context (job_id, rpc, trace_id)."""
    # No local variables in stack traces: they contain images and tokens.
    traces = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderers: dict[LogFormat, list[Any]] = {
        "json": [structlog.processors.ExceptionRenderer(traces), structlog.processors.JSONRenderer()],
        "console": [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_traceback)],
    }
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _harmless,
            *renderers[log_format],
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _harmless(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor that escapes control characters and shortens long texts, since callers may have sent them."""
    return {name: _shown(value) for name, value in line.items()}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(shortened(value, MAX_LOGGED))
    if isinstance(value, Mapping):
        return {_shown(name): _shown(each) for name, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, list) else value


def _write_traceback(stream: TextIO, exception: ExcInfo) -> None:
    text = StringIO()
    structlog.dev.plain_traceback(text, exception)
    stream.write(printable(text.getvalue()))


def own_name() -> str:
    """Returns a name that is unique among running processes: host name and process id."""
    return f"{socket.gethostname()}-{os.getpid()}"


def trace_context(metadata: Mapping[str, str]) -> str:
    """Returns the trace context of a request: its W3C traceparent and, after a space, its tracestate if it has one.

    Returns an empty text if the traceparent is missing or invalid, because a tracestate alone has no meaning.
    """
    traceparent, tracestate = metadata.get("traceparent", ""), metadata.get("tracestate", "")
    if not _TRACEPARENT.fullmatch(traceparent):
        return ""
    return f"{traceparent} {tracestate}" if _TRACESTATE.fullmatch(tracestate) else traceparent


def new_trace_context() -> str:
    """Returns a new context that is not sampled; it connects the log lines of a request."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id(context: str) -> str:
    """Returns the trace id in a context, 32 hexadecimal digits; empty if it has none."""
    match = _TRACEPARENT.fullmatch(context.partition(" ")[0])
    return match.group(1) if match else ""
