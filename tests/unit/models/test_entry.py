"""An operator's file is read strictly: a mistake is named with its field."""

import pytest

from sagittal.core.models import InvalidModelFile, Preprocessing, parse_entries, read_entries

ENTRY = {"name": "tiny", "source": {"kind": "torchvision", "model": "resnet18"}}


def changed(**fields):
    return {"models": [ENTRY | fields]}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        pytest.param(changed(name="Not A Name"), "models.0.name", id="name"),
        pytest.param(changed(version=""), "models.0.version", id="version"),
        pytest.param(changed(colour="blue"), "models.0.colour", id="unknown field"),
        pytest.param(changed(output="guess"), "models.0.output", id="output"),
        pytest.param(changed(preprocessing={"input_size": 2}), "models.0.preprocessing.input_size", id="input size"),
        pytest.param(changed(preprocessing={"std": [1, 0, 1]}), "models.0.preprocessing.std.1", id="std of zero"),
        pytest.param(changed(preprocessing={"mean": [1, 2]}), "models.0.preprocessing.mean", id="two means"),
        pytest.param(changed(preprocessing={"fit": "stretch"}), "models.0.preprocessing.fit", id="fit"),
        pytest.param(changed(preprocessing={"input_size": 300}), "resize .256. must be at least", id="crop too large"),
        pytest.param({"models": [{"name": "tiny"}]}, "models.0.source", id="no source"),
        pytest.param({"models": []}, r"no \[\[models\]\] table", id="no models"),
        pytest.param({}, r"no \[\[models\]\] table", id="empty"),
        pytest.param({"models": [ENTRY, ENTRY]}, "registered twice: tiny version 1", id="twice"),
    ],
)
def test_a_mistake_is_named_with_its_field(document, named):
    with pytest.raises(InvalidModelFile, match=named):
        parse_entries(document, "models.toml")


def test_the_second_entry_is_counted_from_zero():
    with pytest.raises(InvalidModelFile, match=r"models\.1\.name"):
        parse_entries({"models": [ENTRY, ENTRY | {"name": "?"}]}, "models.toml")


def test_a_missing_file_and_a_file_that_is_not_toml_are_told_apart(tmp_path):
    with pytest.raises(InvalidModelFile, match="cannot be read"):
        read_entries(tmp_path / "absent.toml")
    for content in (b"models = [", b"\xff\xfe"):
        (tmp_path / "models.toml").write_bytes(content)
        with pytest.raises(InvalidModelFile, match="is not valid TOML"):
            read_entries(tmp_path / "models.toml")


def test_defaults_are_those_of_imagenet(tmp_path):
    (tmp_path / "models.toml").write_text('[[models]]\nname = "a"\nsource = { kind = "torchvision", model = "x" }\n')
    (entry,) = read_entries(tmp_path / "models.toml")
    assert entry.key == ("a", "1")
    assert not entry.latest
    assert entry.preprocessing == Preprocessing()
