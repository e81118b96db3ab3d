"""Files are read inside the operator's directories alone, whole, and never more of them than is allowed."""

import hashlib
import io
import os
import zipfile

import pytest
import torch

from sagittal.models.sources.access import MIB, Access
from sagittal.models.sources.files import FileReference, check_archive, open_code, open_weights
from sagittal.models.sources.source import ModelUnavailable
from sagittal.models.sources.weights import read_tensors


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "weights.pt").write_bytes(b"weights")
    (tmp_path / "secret.pt").write_bytes(b"secret")
    return tmp_path / "models"


def opened(name, directory, **fields):
    return open_weights(FileReference(path=str(name), **fields), Access(directories=(directory,)))


def test_a_name_is_looked_up_in_the_listed_directories(listed):
    assert opened("weights.pt", listed) == listed / "weights.pt"
    assert opened(listed / "weights.pt", listed) == listed / "weights.pt"
    both = Access(directories=(listed / "deep", listed))
    assert open_weights(FileReference(path="weights.pt"), both) == listed / "weights.pt"


@pytest.mark.parametrize(
    "name", ["../secret.pt", "deep/../../secret.pt", "/etc/passwd", "/no/such/file", "link.pt", "way/secret.pt"]
)
def test_nothing_outside_is_read_nor_told_apart(listed, name):
    (listed / "link.pt").symlink_to(listed.parent / "secret.pt")
    (listed / "way").symlink_to(listed.parent)
    with pytest.raises(ModelUnavailable, match=r"is outside the allowed directories.*SOURCES__DIRECTORIES"):
        opened(name, listed)


def test_links_within_are_followed(listed):
    (listed / "current").symlink_to(listed / "deep")
    (listed / "current" / "w.pt").write_bytes(b"")
    assert opened("current/w.pt", listed) == listed / "deep" / "w.pt"


def test_what_is_no_file_is_refused(listed):
    with pytest.raises(ModelUnavailable, match=r"absent.pt does not exist in"):
        opened("absent.pt", listed)
    with pytest.raises(ModelUnavailable, match="deep is not a regular file"):
        opened("deep", listed)
    os.mkfifo(listed / "pipe")
    with pytest.raises(ModelUnavailable, match="not a regular file"):
        opened("pipe", listed)
    (listed / "loop").symlink_to(listed / "loop")
    with pytest.raises(ModelUnavailable, match=r"cannot be resolved|does not exist"):
        opened("loop", listed)
    with pytest.raises(ModelUnavailable, match="cannot be resolved"):
        opened("a\0b", listed)


def test_code_comes_from_its_own_directories_only(listed):
    with pytest.raises(ModelUnavailable, match="SAGITTAL_SOURCES__CODE_DIRECTORIES lists no directory"):
        open_code(FileReference(path="weights.pt"), Access(directories=(listed,)))
    assert open_code(FileReference(path="weights.pt"), Access(code_directories=(listed,)))


def test_a_wrong_checksum_tells_both(listed):
    right = hashlib.sha256(b"weights").hexdigest()
    assert opened("weights.pt", listed, sha256=right)
    with pytest.raises(ModelUnavailable, match=f"wrong checksum: SHA-256 {right}, expected {'0' * 64}"):
        opened("weights.pt", listed, sha256="0" * 64)


def test_a_file_that_is_too_large_is_not_read(listed):
    with (listed / "large.pt").open("wb") as file:
        file.truncate(MIB + 1)
    with pytest.raises(ModelUnavailable, match=r"has 1.0 MiB; at most 1 MiB are read"):
        open_weights(FileReference(path="large.pt"), Access(directories=(listed,), max_mib=1))


def weights(path):
    torch.save({"a": torch.zeros(8)}, path)
    return path


def test_weights_as_pytorch_writes_them_are_no_bomb(tmp_path):
    check_archive(weights(tmp_path / "weights.pt"))
    torch.save({"a": torch.zeros(8)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert list(read_tensors(tmp_path / "old.pt")) == ["a"]


def test_a_compressed_bomb_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 * MIB))
    assert (tmp_path / "bomb.pt").stat().st_size < MIB
    with pytest.raises(ModelUnavailable, match=r"has the compressed member archive/data.pkl, \d+ bytes for 67108864"):
        read_tensors(tmp_path / "bomb.pt")


def test_members_that_share_their_bytes_are_a_bomb(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data/0", bytes(MIB))
        for number in range(1, 50):
            shared = zipfile.ZipInfo(f"archive/data/{number}")
            first = archive.infolist()[0]
            shared.header_offset, shared.CRC = first.header_offset, first.CRC
            shared.file_size = shared.compress_size = first.file_size
            archive.filelist.append(shared)
    (tmp_path / "bomb.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ModelUnavailable, match="would unpack to 52428800 bytes, more than its size"):
        read_tensors(tmp_path / "bomb.pt")


def test_a_damaged_archive_is_refused(tmp_path):
    content = weights(tmp_path / "weights.pt").read_bytes()
    for cut in (len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:cut])
        with pytest.raises(ModelUnavailable, match=r"cut.pt"):
            read_tensors(tmp_path / "cut.pt")
