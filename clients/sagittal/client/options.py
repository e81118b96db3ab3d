"""How a client connects: limits, retries and credentials."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sagittal.client.errors import InvalidRequest
from sagittal.client.requests import check_kind, check_seconds

#: Largest message in bytes, either way, which is what the service takes unless it is set otherwise there.
MAX_MESSAGE_BYTES = 32 * 1024 * 1024

#: Port of a service whose address names none.
DEFAULT_PORT = 50051

#: How gRPC's own addresses begin, which are taken as they are.
_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:", "passthrough:")

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long a client tries again when the service is away. The waits double and are spread at random."""

    call_seconds: float = 5.0
    """Time in which a call that is not a stream is tried again, in seconds; 0 never tries again."""
    stream_seconds: float = 60.0
    """Time in which a broken stream is taken up again, counted from its last event, in seconds."""
    first_wait: float = 0.1
    """Wait before the second try, in seconds."""
    longest_wait: float = 5.0
    """Longest wait between two tries, in seconds."""

    def __post_init__(self) -> None:
        """Checks the times."""
        check_seconds(self, ("call_seconds", "stream_seconds", "first_wait", "longest_wait"), "retry")

    def wait(self, attempt: int) -> float:
        """Returns the wait after a failed attempt (from 1) in seconds: half of it is chance."""
        bound = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 30))
        return bound * (0.5 + random.random() / 2)  # noqa: S311 - spreads load, keeps no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Encrypts the connection; with a certificate of its own the client proves who it is (mTLS)."""

    root_certificates: str | os.PathLike[str] | None = None
    """PEM file of the authorities to trust; None trusts those that gRPC trusts."""
    certificate: str | os.PathLike[str] | None = None
    """PEM file of the client's certificate chain, for mTLS."""
    private_key: str | os.PathLike[str] | None = None
    """PEM file of the client's key, for mTLS."""
    server_name: str = ""
    """Name expected in the server's certificate; empty expects the address's host."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises InvalidRequest if one cannot be read, and for half a pair."""
        if (self.certificate is None) != (self.private_key is None):
            missing = "certificate" if self.certificate is None else "private_key"
            raise InvalidRequest("mTLS needs both certificate and private_key", field=f"tls.{missing}")
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
    """Everything about the connection that has a sensible default."""

    timeout: float = 30.0
    """Time one call that is not a stream may take, in seconds."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message in bytes, either way."""
    keepalive_seconds: float = 60.0
    """Time without traffic after which a running call is checked by a ping; a dead peer is found 20 s later."""
    retry: Retry = field(default_factory=Retry)
    allow_plaintext_token: bool = False
    """Lets a token travel unencrypted to another machine, inside a mesh that encrypts for instance."""

    def __post_init__(self) -> None:
        """Checks the limits."""
        check_seconds(self, ("timeout", "keepalive_seconds"), "options")
        check_kind(self.retry, Retry, "options.retry", "Retry(...)")
        if check_kind(self.max_message_bytes, int, "options.max_message_bytes", "bytes") < 1:
            raise InvalidRequest(
                f"got {self.max_message_bytes}; expected at least 1", field="options.max_message_bytes"
            )

    def channel_arguments(self, tls: TLS | None) -> Sequence[tuple[str, str | int]]:
        """Returns gRPC's names for these options."""
        arguments: list[tuple[str, str | int]] = [
            # A name may have several addresses, as a headless Service has one for each replica: calls take turns.
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
    """Returns an address with its port. Raises InvalidRequest for one that gRPC could not connect to."""
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
    """Returns the metadata of every call. Raises InvalidRequest if a token would travel in the clear."""
    if not token:
        return ()
    if not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise InvalidRequest("the token has characters that no header may carry; strip line ends", field="token")
    local = address.startswith(("unix:", "unix-abstract:")) or address.rpartition(":")[0] in _LOOPBACK
    if tls is None and not local and not options.allow_plaintext_token:
        raise InvalidRequest(
            f"a token would travel unencrypted to {address}: give tls=TLS(...), "
            "or Options(allow_plaintext_token=True) if the network encrypts",
            field="token",
        )
    return (("authorization", f"Bearer {token}"),)
