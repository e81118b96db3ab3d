"""A data set that cannot be audited is refused with the field and the remedy; groups that are too small are named."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from sagittal.audit.dataset import MIN_GROUP, read_dataset
from sagittal.client import Box, InvalidRequest

MODEL = SimpleNamespace(name="lamp", labels=("off", "on", "crane", "crane", "tree frog"), classes=5)


def images(folder: Path, count: int = MIN_GROUP) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        PIL.Image.new("RGB", (4, 4)).save(folder / f"{number}.png")
    return folder


def table(path: Path, *rows: dict) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def refused(source: Path, **options: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_dataset(source, MODEL, **options)
    return caught.value


def test_a_folder_for_each_class_is_a_data_set(tmp_path) -> None:
    for name in ("off", "tree_frog", "3"):
        images(tmp_path / name)
    found = read_dataset(tmp_path, MODEL)
    assert {(each.name, each.label, each.group) for each in found.images} == {
        ("off", 0, "off"), ("tree_frog", 4, "tree_frog"), ("3", 3, "3"),
    }  # fmt: skip
    items = list(found.manifest().items())
    assert (len(items), found.manifest().count()) == (3 * MIN_GROUP, 3 * MIN_GROUP)
    assert (items[0].key, items[0].options["target"]) == ("3/0.png", 3)
    assert not items[0].options["metrics"].curves


def test_a_table_names_label_key_group_boxes_and_mask(tmp_path) -> None:
    images(tmp_path / "all", 2 * MIN_GROUP)
    PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "mask.png")
    rows = [
        {"image": f"all/{number}.png", "label": number % 2, "key": f"k{number}", "group": "lamps",
         "boxes": [[0, 1, 2, 3]], "mask": "mask.png"}
        for number in range(2 * MIN_GROUP)
    ]  # fmt: skip
    found = read_dataset(table(tmp_path / "t.json", *rows), MODEL).images[1]
    assert (found.key, found.label, found.group, found.boxes) == ("k1", 1, "lamps", (Box(0, 1, 2, 3),))
    assert found.mask == tmp_path / "mask.png"


def test_small_groups_are_left_out_and_may_be_put_together(tmp_path) -> None:
    for name, count in (("off", MIN_GROUP), ("on", MIN_GROUP), ("3", 3), ("4", 5)):
        images(tmp_path / name, count)
    alone = read_dataset(tmp_path, MODEL)
    assert alone.left_out["3"] == f"3 images; at least {MIN_GROUP} are needed"
    assert {each.group for each in alone.images} == {"off", "on"}
    together = read_dataset(tmp_path, MODEL, groups={"3": "rest", "4": "rest"})
    assert not together.left_out
    assert {each.group for each in together.images} == {"off", "on", "rest"}


def test_masks_lie_at_the_paths_of_their_images(tmp_path) -> None:
    for name in ("off", "on"):
        images(tmp_path / "images" / name)
    images(tmp_path / "masks" / "off", 2)
    found = read_dataset(tmp_path / "images", MODEL, masks=tmp_path / "masks").images
    assert [each.key for each in found if each.mask] == ["off/0.png", "off/1.png"]
    (tmp_path / "none").mkdir()
    error = refused(tmp_path / "images", masks=tmp_path / "none")
    assert error.field == "masks"
    assert "name masks as their images" in str(error)


@pytest.mark.parametrize("absolute", [True, False])
def test_an_image_that_a_table_names_outside_the_folder_of_masks_is_not_its_own_mask(tmp_path, absolute: bool) -> None:
    images(tmp_path / "all", 2 * MIN_GROUP)
    (tmp_path / "masks").mkdir()
    folder = tmp_path / "all" if absolute else Path("../all")
    (tmp_path / "tables").mkdir()
    rows = [{"image": str(folder / f"{number}.png"), "label": number % 2} for number in range(2 * MIN_GROUP)]
    error = refused(table(tmp_path / "tables" / "t.json", *rows), masks=tmp_path / "masks")
    assert error.field == "masks"
    assert "column mask" in str(error)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path) -> None:
    empty, missing = refused(tmp_path), refused(tmp_path / "no")
    assert (empty.field, missing.field) == ("source", "source")
    assert "one folder of JPEG, PNG or WebP files for each class" in str(empty)


def test_images_without_a_folder_of_their_class_are_refused(tmp_path) -> None:
    error = refused(images(tmp_path / "x"))
    assert "put the images of each class into a folder named after it" in str(error)


def test_one_class_is_refused(tmp_path) -> None:
    images(tmp_path / "on")
    error = refused(tmp_path)
    assert error.field == "source"
    assert "add images of at least one other class" in str(error)


def test_classes_that_are_all_too_small_are_refused(tmp_path) -> None:
    images(tmp_path / "on", 2)
    images(tmp_path / "off", 3)
    error = refused(tmp_path)
    assert error.field == "groups"
    assert "the largest has 3" in str(error)


def test_labels_that_the_model_does_not_have_are_named_and_can_be_mapped(tmp_path) -> None:
    for name in ("n01", "n02"):
        images(tmp_path / name)
    error = refused(tmp_path)
    assert error.field == "classes"
    assert "lamp has no class 'n01', 'n02'" in str(error)
    found = read_dataset(tmp_path, MODEL, classes={"n01": "on", "n02": 0})
    assert {(each.name, each.label) for each in found.images} == {("n01", 1), ("n02", 0)}


def test_a_label_of_two_classes_is_refused(tmp_path) -> None:
    for name in ("crane", "on"):
        images(tmp_path / name)
    error = refused(tmp_path)
    assert error.field == "classes"
    assert "give the index of one" in str(error)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ([{"label": 1}], "image"),
        ([{"image": "a.png"}], "label"),
        ([{"image": "no.png", "label": 1}], "image"),
        ([{"image": "a.png", "label": 1, "boxes": [1, 2]}], "boxes"),
        ([{"image": "a.png", "label": 1, "mask": "no.png"}, {"image": "a.png", "label": 0}], "mask"),
        ([{"image": "a.png", "label": 1}, {"image": "a.png", "label": 0}], "key"),
        ([1], "source"),
    ],
)
def test_a_wrong_row_of_a_table_is_named(tmp_path, rows, field: str) -> None:
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert refused(table(tmp_path / "t.json", *rows)).field == field


def test_a_file_that_is_no_table_is_refused(tmp_path) -> None:
    (tmp_path / "t.txt").write_text("x")
    (tmp_path / "t.json").write_text("{")
    assert "expected a folder, .csv" in str(refused(tmp_path / "t.txt"))
    assert "cannot be read" in str(refused(tmp_path / "t.json"))
