"""The gRPC endpoint: its options, addresses and TLS."""

from pathlib import Path

import grpc
import structlog

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
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _milliseconds(settings.min_client_keepalive)),
        ("grpc.enable_channelz", int(channelz)),
        ("grpc.so_reuseport", 0),  # an address in use is an error, instead of a silent share of its calls
    ]


def bind(server: grpc.aio.Server, addresses: tuple[str, ...], tls: TlsSettings) -> list[int]:
    """Binds the server to its addresses and returns their ports (port 0 takes a free one).

    Raises:
        CannotListen: an address is in use or malformed.
    """
    credentials = server_credentials(tls) if tls.certificate else None
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


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Returns TLS credentials that reload the files: a handshake after a change uses the new certificate."""
    files = Files(tls)
    initial = files.changed()
    if initial is None:
        raise CannotListen("tls.certificate and tls.key are not set; set both to PEM files")
    return grpc.dynamic_ssl_server_credentials(
        initial,
        files.changed,  # type: ignore[arg-type]  # None means that nothing has changed
        require_client_authentication=tls.client_ca is not None,
    )


class Files:
    """The certificate's files, reloaded if they change."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._seen: tuple[tuple[int, int], ...] = ()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the certificate if its files have changed since the last call, else None.

        Raises:
            OSError: a file cannot be read and there is no earlier certificate.
        """
        try:
            return self._read()
        except OSError as error:
            if not self._seen:
                raise
            _log.warning("certificate-not-renewed", error=str(error), doing="keeping the earlier one")
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration | None:
        seen = tuple(_stamp(path) for path in (self._tls.certificate, self._tls.key, self._tls.client_ca) if path)
        if seen == self._seen or self._tls.certificate is None or self._tls.key is None:
            return None
        pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
        roots = self._tls.client_ca.read_bytes() if self._tls.client_ca else None
        self._seen = seen
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
