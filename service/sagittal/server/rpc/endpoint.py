"""The gRPC endpoint: its options, addresses and TLS."""

from pathlib import Path
from threading import Lock

import grpc
import structlog
from cryptography import x509

from sagittal.server.settings import CallSettings, ConnectionSettings, TlsSettings

_LOCAL = ("127.", "localhost:", "[::1]:", "unix:")

_log = structlog.get_logger(__name__)

Option = tuple[str, int]


class CannotListen(Exception):
    """An address is not available."""


def server_options(
    settings: ConnectionSettings, calls: CallSettings | None = None, *, channelz: bool = False
) -> list[Option]:
    """Returns gRPC's options for these settings; with `channelz` gRPC tracks every connection."""
    pending = (calls or CallSettings()).max_pending
    return [
        # gRPC resets arriving calls at random above the first, whosever they are, and all of them above the second
        ("grpc.server.max_pending_requests", pending),
        ("grpc.server.max_pending_requests_hard_limit", pending),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.max_idle)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", 2 * settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.server_handshake_timeout_ms", _milliseconds(settings.handshake_timeout)),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_age_grace)),
        ("grpc.keepalive_time_ms", _milliseconds(settings.keepalive_interval)),
        ("grpc.keepalive_timeout_ms", _milliseconds(settings.keepalive_timeout)),
        # without this an unanswered ping has a timeout of one minute, regardless of the keepalive timeout
        ("grpc.http2.ping_timeout_ms", _milliseconds(settings.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(settings.min_client_keepalive)),
        ("grpc.enable_channelz", int(channelz)),
        ("grpc.so_reuseport", 0),  # an address in use is an error, instead of a silent share of its calls
    ]


def bind(server: grpc.aio.Server, addresses: tuple[str, ...], files: "CertificateFiles | None" = None) -> list[int]:
    """Binds the server to its addresses, with TLS if there are files, and returns their ports (0 takes a free one).

    Raises:
        CannotListen: an address is in use or malformed.
    """
    credentials = server_credentials(files) if files else None
    ports = []
    for address in addresses:
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise CannotListen(f"cannot listen on {address}: {error}; set SAGITTAL_LISTEN to a free address") from error
        ports.append(port)
    return ports


def open_addresses(addresses: tuple[str, ...]) -> list[str]:
    """Returns the addresses that other machines can reach."""
    return [address for address in addresses if not address.startswith(_LOCAL)]


def server_credentials(files: "CertificateFiles") -> grpc.ServerCredentials:
    """Returns TLS credentials that reload the files: a handshake after a change uses the new certificate."""
    return grpc.dynamic_ssl_server_credentials(
        files.changed(),  # type: ignore[arg-type]  # the first call returns a certificate
        files.changed,  # type: ignore[arg-type]  # None means that nothing has changed
        require_client_authentication=files.client_ca is not None,
    )


class CertificateFiles:
    """The files of the endpoint's certificate, read again if they change. Thread-safe."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self.client_ca = client_ca
        self._paths = [path for path in (certificate, key, client_ca) if path]
        self._seen: list[tuple[int, int]] = []
        self._read: tuple[bytes, ...] = ()
        self._used: tuple[bytes, ...] = ()
        self._lock = Lock()

    @classmethod
    def of(cls, tls: TlsSettings) -> "CertificateFiles | None":
        """Returns the files that the settings name; None without TLS."""
        return cls(tls.certificate, tls.key, tls.client_ca) if tls.certificate and tls.key else None

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificate if it is not the one of the last call, else None.

        Raises:
            OSError: a file cannot be read and there is no earlier certificate.
        """
        with self._lock:
            self._refresh()
            if self._read == self._used:
                return None
            self._used = self._read
            certificate, key, *roots = self._used
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=next(iter(roots), None)
        )

    def expires(self) -> float:
        """Returns when the certificate that the next handshake uses expires, in seconds since the epoch.

        Raises:
            OSError: a file cannot be read and there is no earlier certificate.
            ValueError: the file has no certificate.
        """
        with self._lock:
            self._refresh()
        return x509.load_pem_x509_certificate(self._read[0]).not_valid_after_utc.timestamp()

    def _refresh(self) -> None:
        try:
            seen = [_stamp(path) for path in self._paths]
            if seen != self._seen:
                self._read = tuple(path.read_bytes() for path in self._paths)
                self._seen = seen
        except OSError as error:
            if not self._seen:
                raise
            _log.warning("certificate-not-renewed", error=str(error), doing="keeping the earlier one")


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
