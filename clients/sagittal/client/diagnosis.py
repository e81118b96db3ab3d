"""Diagnosis of failed connections by probing the address: gRPC reports a one-sided TLS configuration as refused."""

import socket
import ssl

from sagittal.client.errors import ConnectionFailed
from sagittal.client.options import TLS

#: Timeout of each probing step, in seconds; short, because it follows calls that already failed.
_LOOK_SECONDS = 5.0


def diagnosed(error: ConnectionFailed, address: str, tls: TLS | None) -> ConnectionFailed:
    """Returns an error that names TLS as the cause, or the same error if it is not."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    if not port.isdecimal() or (":" in host and not host.startswith("[")):
        return error  # a path, or a scheme without a host
    try:
        text = _reason(host.strip("[]"), int(port), address, tls)
    except OSError:
        return error  # nothing listens, or it does not answer
    return ConnectionFailed(text, job_id=error.job_id) if text else error


def _reason(host: str, port: int, address: str, tls: TLS | None) -> str:
    encrypted = _handshake(host, port, ssl.CERT_NONE, None) is None
    if encrypted and tls is None:
        return f"the service at {address} expects TLS, and the client sends plain text: give tls=TLS(...)"
    if tls is None:
        return ""
    if not encrypted:
        return f"the service at {address} does not use TLS, and the client does: omit tls, or enable TLS on the service"
    fault = _handshake(tls.server_name or host, port, ssl.CERT_REQUIRED, tls, connect_to=host)
    return (
        f"the TLS handshake with {address} failed: {fault or 'the service did not accept it'}; check "
        "TLS(root_certificates=...) and server_name, and certificate and private_key if the service requires them"
    )


def _handshake(name: str, port: int, verify: ssl.VerifyMode, tls: TLS | None, connect_to: str = "") -> str | None:
    """Returns the fault of a handshake, None if it succeeded. Raises OSError if nothing answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = verify is ssl.CERT_REQUIRED
    context.verify_mode = verify
    context.set_alpn_protocols(["h2"])
    if tls is not None and tls.root_certificates is not None:
        context.load_verify_locations(cafile=tls.root_certificates)
    elif verify is ssl.CERT_REQUIRED:
        context.load_default_certs()
    with socket.create_connection((connect_to or name, port), timeout=_LOOK_SECONDS) as plain:
        try:
            context.wrap_socket(plain, server_hostname=name).close()
        except TimeoutError:
            raise
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        except OSError as error:
            return str(error) or type(error).__name__
    return None
