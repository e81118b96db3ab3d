from pathlib import Path

import pytest

from sagittal.server.rpc.endpoint import Files, open_addresses
from sagittal.server.settings import TlsSettings


@pytest.fixture
def tls(tmp_path: Path) -> TlsSettings:
    for name in ("certificate", "key"):
        (tmp_path / name).write_bytes(name.encode())
    return TlsSettings(certificate=tmp_path / "certificate", key=tmp_path / "key")


def test_a_certificate_is_read_once_until_its_files_change(tls: TlsSettings) -> None:
    files = Files(tls)
    assert files.changed() is not None
    assert files.changed() is None
    assert tls.certificate is not None
    tls.certificate.write_bytes(b"a longer certificate")
    assert files.changed() is not None


def test_files_that_vanish_leave_the_earlier_certificate_in_force(tls: TlsSettings) -> None:
    files = Files(tls)
    files.changed()
    assert tls.key is not None
    tls.key.unlink()
    assert files.changed() is None


def test_files_that_never_were_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nosuch"):
        Files(TlsSettings(certificate=tmp_path / "nosuch", key=tmp_path / "nosuch")).changed()


def test_only_addresses_that_others_reach_are_open() -> None:
    local = ("127.0.0.1:1", "localhost:1", "[::1]:1", "unix:///run/s.sock")
    assert open_addresses((*local, "0.0.0.0:1", "[::]:1", "10.0.0.1:1")) == ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"]
