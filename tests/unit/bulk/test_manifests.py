"""Every kind of manifest names the same images, lazily, and a wrong row fails alone or names itself."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from sagittal.bulk import ManifestError, open_manifest
from sagittal.bulk.manifests import Store, row_items
from sagittal.client.batches import BatchItem
from sagittal.client.errors import InvalidImage


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {"a.png": png(1), "b.png": png(2), "deep/c.png": png(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    for name, content in IMAGES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    (place / "notes.txt").write_text("no image")
    return place


def read(item: BatchItem) -> bytes:
    return item.image() if callable(item.image) else item.image


def contents(source: object) -> list[bytes]:
    return sorted(read(item) for item in open_manifest(source).items())


def write_csv(folder: Path) -> Path:
    path = folder / "list.csv"
    path.write_text("image,target\n" + "".join(f"{name},1\n" for name in IMAGES))
    return path


def write_jsonl(folder: Path) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps({"path": name}) + "\n\n" for name in IMAGES))
    return path


def write_paths(folder: Path) -> Path:
    path = folder / "list.parquet"
    parquet.write_table(pyarrow.table({"file": list(IMAGES)}), path)
    return path


def write_bytes(folder: Path) -> Path:
    """As the library `datasets` stores images."""
    path = folder / "bytes.parquet"
    cells = [{"bytes": content, "path": name} for name, content in IMAGES.items()]
    parquet.write_table(pyarrow.table({"image": cells}), path)
    return path


def write_shards(folder: Path) -> Path:
    for number, (name, content) in enumerate(IMAGES.items()):
        with tarfile.open(folder / f"shard-{number:03d}.tar", "w") as shard:
            for ending, part in (("png", content), ("cls", b"1"), ("json", b'{"seed": 7}')):
                member = tarfile.TarInfo(f"{Path(name).stem}.{ending}")
                member.size = len(part)
                shard.addfile(member, io.BytesIO(part))
    return folder / "shard-{000..002}.tar"


@pytest.mark.parametrize("write", [Path, write_csv, write_jsonl, write_paths, write_bytes, write_shards])
def test_every_kind_of_manifest_names_all_images(folder, write) -> None:
    assert contents(write(folder)) == sorted(IMAGES.values())


def test_a_pattern_names_the_files_that_match(folder) -> None:
    assert contents(folder / "*.png") == sorted([IMAGES["a.png"], IMAGES["b.png"]])
    assert contents(folder / "**" / "*.png") == sorted(IMAGES.values())


def test_manifests_and_images_may_be_urls_of_any_file_system(folder) -> None:
    memory = fsspec.filesystem("memory")
    for name, content in IMAGES.items():
        memory.pipe_file(f"/bulk/{name}", content)
    memory.pipe_file("/bulk/list.csv", b"url\nmemory://bulk/a.png\ndeep/c.png\n")
    try:
        assert contents("memory://bulk") == sorted(IMAGES.values())
        assert contents("memory://bulk/*.png") == sorted([IMAGES["a.png"], IMAGES["b.png"]])
        assert contents("memory://bulk/list.csv") == sorted([IMAGES["a.png"], IMAGES["deep/c.png"]])
    finally:
        memory.rm("/bulk", recursive=True)


def test_columns_are_options_of_the_item(tmp_path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "key,image,target,boxes,baseline,method,seed,labels\n"
        'one,a.png,lamp,"[[0, 1, 2, 3]]",black,"{""name"": ""igos++"", ""mask_size"": 14}",7,"{""split"": ""test""}"\n'
        "two,b.png,3,,,,,\n"
    )
    one, two = open_manifest(path).items()
    assert (one.key, one.options["target"], one.options["baseline"], one.options["seed"]) == ("one", "lamp", "black", 7)
    assert [(box.left, box.bottom) for box in one.options["metrics"].boxes] == [(0, 3)]
    assert (one.options["method"].name, one.options["method"].parameters) == ("igos++", {"mask_size": 14})
    assert one.options["labels"] == {"split": "test"}
    assert (two.key, two.options) == ("two", {"target": 3})


def test_rows_of_an_engine_have_pixels_and_what_pandas_writes() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    rows = [
        {"image": pixels, "key": 0, "target": 3.0, "seed": 7.0},
        {"image": None, "path": "file:/images/a.png", "key": float("nan"), "target": float("nan"), "boxes": None},
    ]
    one, two = row_items(rows, source="rows")
    assert (one.key, one.options) == ("0", {"target": 3, "seed": 7})
    assert one.image is pixels
    assert (two.key, two.options) == ("file:/images/a.png", {})
    assert Store.of("file:/images/a.png") == Store.of("file:///images/a.png") == Store("/images/a.png")


def test_shards_give_target_and_options_of_their_samples(folder) -> None:
    item = next(open_manifest(write_shards(folder)).items())
    assert (item.key, item.options) == ("shard-000/a", {"target": 1, "seed": 7})


def test_the_number_of_items_is_counted_where_that_is_cheap(folder) -> None:
    counts = [open_manifest(write(folder)).count() for write in (write_csv, write_jsonl, write_paths, Path)]
    assert counts == [3, 3, 3, 3]
    assert open_manifest(write_shards(folder)).count() is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "a.png", "boxes": [[1, 2]]}', r"the option boxes .*expected boxes as \[left, top, right, bottom\]"),
        ('{"image": "a.png", "seed": "x"}', "the option seed in its row is 'x'"),
        ('{"image": "a.png", "method": {"mask_size": 14}}', "the option method .*expected a method as"),
        ('{"image": "a.png", "labels": 3}', "the option labels"),
        ('{"key": "a.png", "image": ""}', "its row has no image"),
    ],
)
def test_a_wrong_row_fails_its_item_alone_and_says_what_is_wrong(tmp_path, row, message) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(f'{row}\n{{"image": "b.png"}}\n')
    wrong, right = open_manifest(path).items()
    with pytest.raises(InvalidImage, match=message):
        wrong.image()
    assert (wrong.key, right.key) == ("a.png", "b.png")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "name\na.png\n", "row 1 has no image"),
        ("list.csv", 'image\n""\n', "row 1 has neither a key nor a path"),
        ("list.jsonl", "[]\n", "line 1 is no JSON object"),
        ("list.jsonl", "{\n", "line 1 is no JSON"),
        ("list.csv", f"image\n{'a' * 600}\n", "600 characters"),
        ("list.txt", "a.png\n", "is no manifest"),
        ("list.tar", "no tar", "cannot read the shard"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_where(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        list(open_manifest(tmp_path / name).items())


def test_a_manifest_that_does_not_exist_is_refused(tmp_path) -> None:
    with pytest.raises(ManifestError, match="there is no file"):
        open_manifest(tmp_path / "none.csv")
