import datetime
from pathlib import Path

import pytest
import trustme
from prometheus_client import CollectorRegistry

from sagittal.server.metrics import ServiceMetrics
from sagittal.server.rpc.endpoint import CertificateFiles, open_addresses


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    for name in ("certificate", "key"):
        (tmp_path / name).write_bytes(name.encode())
    return CertificateFiles(tmp_path / "certificate", tmp_path / "key")


def test_a_certificate_is_read_once_until_its_files_change(files: CertificateFiles, tmp_path: Path) -> None:
    assert files.changed() is not None
    assert files.changed() is None
    (tmp_path / "certificate").write_bytes(b"a longer certificate")
    assert files.changed() is not None


def test_files_that_vanish_leave_the_earlier_certificate_in_force(files: CertificateFiles, tmp_path: Path) -> None:
    files.changed()
    (tmp_path / "key").unlink()
    assert files.changed() is None


def test_files_that_never_were_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nosuch"):
        CertificateFiles(tmp_path / "nosuch", tmp_path / "nosuch").changed()


def issue(authority: trustme.CA, directory: Path, days: float) -> None:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    made = authority.issue_cert("localhost", not_after=until)
    (directory / "certificate").write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
    (directory / "key").write_bytes(made.private_key_pem.bytes())


def test_scrapes_tell_when_the_certificate_on_disk_expires(files: CertificateFiles, tmp_path: Path) -> None:
    """Before and after a renewal, which a scrape must not hide from the next handshake."""
    authority, registry = trustme.CA(), CollectorRegistry()
    metrics, name = ServiceMetrics(registry), "sagittal_certificate_expiry_seconds"
    assert registry.get_sample_value(name) is None, "no certificate is no certificate that expires"
    issue(authority, tmp_path, days=10)
    metrics.certificate.files = files
    assert files.changed() is not None
    assert registry.get_sample_value(name) == pytest.approx(10 * 86400, abs=1800)
    issue(authority, tmp_path, days=90)
    assert registry.get_sample_value(name) == pytest.approx(90 * 86400, abs=1800)
    assert files.changed() is not None
    (tmp_path / "certificate").write_bytes(b"no certificate")
    assert registry.get_sample_value(name) is None


def test_only_addresses_that_others_reach_are_open() -> None:
    local = ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:///run/s.sock")
    assert open_addresses((*local, "0.0.0.0:1", "[::]:1", "10.0.0.1:1")) == ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"]
