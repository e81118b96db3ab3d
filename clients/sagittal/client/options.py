"""Connection settings: limits, retries and credentials."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sagittal.client.errors import InvalidRequest
from sagittal.client.requests import check_kind, check_seconds

#: Default maximum of a message in bytes, sent or received; the same as the service's default.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024

#: Default port.
DEFAULT_PORT = 50051

#: Prefixes of gRPC's own addresses, which are used unchanged.
_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:", "passthrough:")

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Retries while the service is unavailable. Pauses double and are randomised."""

    call_seconds: float = 5.0
    """Time for retries of a unary call, in seconds; 0 disables them."""
    stream_seconds: float = 60.0
    """Time to resume a broken stream, from its last event, in seconds."""
    first_wait: float = 0.1
    """Pause before the second attempt, in seconds."""
    longest_wait: float = 5.0
    """Longest pause between two attempts, in seconds."""

    def __post_init__(self) -> None:
        """Checks the times."""
        check_seconds(self, ("call_seconds", "stream_seconds", "first_wait", "longest_wait"), "retry")

    def wait(self, attempt: int) -> float:
        """Returns the pause after a failed attempt (from 1) in seconds; half of it is random."""
        bound = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 30))
        return bound * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, keeps no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """TLS settings; with a client certificate the connection is mutually authenticated (mTLS)."""

    root_certificates: str | os.PathLike[str] | None = None
    """PEM file of trusted authorities; None for those that gRPC trusts."""
    certificate: str | os.PathLike[str] | None = None
    """PEM file of the client's certificate chain, for mTLS."""
    private_key: str | os.PathLike[str] | None = None
    """PEM file of the client's key, for mTLS."""
    server_name: str = ""
    """Expected name in the server's certificate; empty for the address's host."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises InvalidRequest if one cannot be read, or if one of certificate and key is missing."""
        if (self.certificate is None) != (self.private_key is None):
            missing = "certificate" if self.certificate is None else "private_key"
            raise InvalidRequest("mTLS requires both certificate and private_key", field=f"tls.{missing}")
        return grpc.ssl_channel_credentials(
            root_certificates=self._read("root_certificates"),
            private_key=self._read("private_key"),
            certificate_chain=self._read("certificate"),
        )

    def _read(self, name: str) -> bytes | None:
        path = getattr(self, name)
        try:
            return None if path is None else Path(path).read_bytes()
        except (OSError, TypeError) as error:
            raise InvalidRequest(f"cannot read {path!r}: {error}", field=f"tls.{name}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Connection options with defaults."""

    timeout: float = 30.0
    """Timeout of a unary call, in seconds."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Maximum size of a message in bytes, sent or received."""
    keepalive_seconds: float = 60.0
    """Time without traffic after which a running call is checked by a ping; a dead peer is detected 20 s later."""
    retry: Retry = field(default_factory=Retry)
    allow_plaintext_token: bool = False
    """Allows a token to be sent unencrypted to another machine, for example inside a mesh that encrypts."""

    def __post_init__(self) -> None:
        """Checks the limits."""
        check_seconds(self, ("timeout", "keepalive_seconds"), "options")
        check_kind(self.retry, Retry, "options.retry", "Retry(...)")
        if check_kind(self.max_message_bytes, int, "options.max_message_bytes", "bytes") < 1:
            raise InvalidRequest(
                f"got {self.max_message_bytes}; expected at least 1", field="options.max_message_bytes"
            )

    def channel_arguments(self, tls: TLS | None) -> Sequence[tuple[str, str | int]]:
        """Returns the options as gRPC channel arguments."""
        arguments: list[tuple[str, str | int]] = [
            # A name may have several addresses, such as a headless Service with one per replica: calls alternate.
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(self.keepalive_seconds * 1000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        if tls and tls.server_name:
            arguments.append(("grpc.ssl_target_name_override", tls.server_name))
        return arguments


def full_address(address: str) -> str:
    """Returns an address with its port. Raises InvalidRequest for an address that gRPC cannot use."""
    if not isinstance(address, str) or not address.strip() or ("/" in address and not address.startswith(_SCHEMES)):
        text = f"got {address!r}; expected host:port without a scheme (TLS is tls=TLS(...)), or a unix: path"
        raise InvalidRequest(text, field="address")
    if address.startswith(_SCHEMES):
        return address
    if address.count(":") > 1 and not address.startswith("["):
        return f"[{address}]:{DEFAULT_PORT}"  # IPv6
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return f"{address}:{DEFAULT_PORT}"
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise InvalidRequest(f"got {address!r}; expected a port from 1 to 65535", field="address")
    return f"{host or 'localhost'}:{port}"


def call_metadata(address: str, token: str, tls: TLS | None, options: Options) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the metadata of every call. Raises InvalidRequest if a token would be sent unencrypted."""
    if not token:
        return ()
    if not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise InvalidRequest("the token has characters that are invalid in a header; strip line ends", field="token")
    local = address.startswith(("unix:", "unix-abstract:")) or address.rpartition(":")[0] in _LOOPBACK
    if tls is None and not local and not options.allow_plaintext_token:
        raise InvalidRequest(
            f"the token would be sent unencrypted to {address}: give tls=TLS(...), "
            "or Options(allow_plaintext_token=True) if the network encrypts",
            field="token",
        )
    return (("authorization", f"Bearer {token}"),)
