"""The files of concept sets: named by their content, in a directory or an object store."""

import hashlib
import secrets
from pathlib import Path

import pytest
from pydantic import ValidationError

from sagittal.core.errors import FailedPrecondition, NotFound, Unavailable
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage, examples_file, weights_file

CONTENT = b"weights"
NAME = weights_file(CONTENT)


@pytest.fixture(params=["directory", "object store"])
def files(request, tmp_path: Path) -> ConceptFiles:
    if request.param == "directory":
        return ConceptFiles(ConceptStorage(directory=tmp_path))
    return ConceptFiles(ConceptStorage(url=f"memory://{secrets.token_hex(6)}/concepts"))


def test_a_file_comes_back_until_it_is_deleted(files: ConceptFiles):
    files.write(NAME, CONTENT)
    assert files.read(NAME) == CONTENT
    files.delete(NAME)
    files.delete(NAME)
    with pytest.raises(NotFound, match="does not exist"):
        files.read(NAME)


def test_names_are_the_digests_of_the_content(files: ConceptFiles):
    assert hashlib.sha256(CONTENT).hexdigest() in NAME
    examples = examples_file(b"examples", NAME)
    files.write(examples, b"examples")
    assert files.read(examples) == b"examples"
    assert examples != examples_file(b"examples", weights_file(b"other")), "each set has files of its own"


def test_what_was_not_written_is_refused(files: ConceptFiles):
    files.write(NAME, b"something else")
    with pytest.raises(FailedPrecondition, match="is damaged: fit the set again"):
        files.read(NAME)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", f"{'0' * 64}.safetensors/..", "a.safetensors"])
def test_names_of_nothing_that_was_written_reach_no_file(files: ConceptFiles, name: str):
    with pytest.raises(FailedPrecondition, match="is not the name of"):
        files.read(name)
    files.delete(name)


def test_a_directory_holds_whole_files_only(tmp_path: Path):
    files = ConceptFiles(ConceptStorage(directory=tmp_path))
    files.write(NAME, CONTENT)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == [f"files/{NAME}"]


def test_a_place_that_cannot_be_used_is_away(tmp_path: Path):
    (tmp_path / "files").write_text("no directory")
    with pytest.raises(Unavailable, match="SAGITTAL_CONCEPTS__DIRECTORY") as caught:
        ConceptFiles(ConceptStorage(directory=tmp_path)).write(NAME, CONTENT)
    assert caught.value.retry_after


def test_without_a_place_the_settings_are_named():
    files = ConceptFiles(ConceptStorage())
    assert not files.configured
    with pytest.raises(FailedPrecondition, match=r"SAGITTAL_CONCEPTS__DIRECTORY or SAGITTAL_CONCEPTS__URL"):
        files.check("service")


def test_a_store_whose_library_is_missing_names_the_extra():
    files = ConceptFiles(ConceptStorage(url="nosuchscheme://bucket"))
    with pytest.raises((FailedPrecondition, Unavailable)):
        files.read(NAME)


@pytest.mark.parametrize("url", ["bucket/concepts", "simplecache::s3://bucket"])
def test_urls_of_no_object_store_are_refused(url: str):
    with pytest.raises(ValidationError, match="exactly one scheme"):
        ConceptStorage(url=url)
