"""The connection to a model server: TLS, metadata, and sizes of messages."""

from pathlib import Path

import grpc

from sagittal.models.sources.access import MIB, Server
from sagittal.models.sources.failures import ModelUnavailable

Metadata = tuple[tuple[str, str | bytes], ...]
"""As gRPC takes it."""

MESSAGE_BYTES = 256 * MIB
"""Largest message that is sent or taken."""

_OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # gRPC waits up to two minutes before it connects again; a restarted server is back sooner.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Retries are ours alone.
    ("grpc.enable_retries", 0),
)


def open_channel(server: Server) -> grpc.Channel:
    """Returns a channel; it connects with the first call. Raises ModelUnavailable where a file cannot be read."""
    if not server.tls:
        return grpc.insecure_channel(server.address, options=_OPTIONS)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(server.ca_file),
        private_key=_read(server.key_file),
        certificate_chain=_read(server.certificate_file),
    )
    return grpc.secure_channel(server.address, credentials, options=_OPTIONS)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"the file {path} of a model server cannot be read: {error.strerror}") from error


def metadata_of(server: Server) -> Metadata:
    """Returns the metadata of a call, files read anew. Raises OSError."""
    from_files = {name: path.read_text().strip() for name, path in server.metadata_files.items()}
    return tuple((server.metadata | from_files).items())
