"""Manifests, which name the images of a batch: rows of a table, files of a folder, or members of tar shards.

Nothing is read before it is needed: the items of a manifest are an iterator, and the image of an item is a function
that several threads call at once. So memory does not grow with the number of images.
"""

import csv
import io
import json
import math
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from sagittal.client.batches import BatchItem
from sagittal.client.errors import InvalidImage, InvalidRequest
from sagittal.client.extras import import_extra
from sagittal.client.images import ImageLike
from sagittal.client.methods import Method
from sagittal.client.requests import Baseline, Box, Metrics

#: Endings of files that are images.
IMAGES = (".jpg", ".jpeg", ".png", ".webp")

#: Columns with the image, in the order in which they are looked for.
IMAGE_COLUMNS = ("image", "path", "file", "url")

#: Columns that are options of an item.
OPTION_COLUMNS = ("target", "boxes", "baseline", "method", "seed", "deadline", "max_evaluations", "labels")

#: Largest number of characters of a key; the service accepts no longer ones.
MAX_KEY = 512

#: Rows of a Parquet file that are read at a time.
ROWS_AT_ONCE = 256

_BASELINES = ("blur", "black", "mean", "noise")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_URL = re.compile(r"^[a-z][a-z0-9+.-]+:/", re.IGNORECASE)

Row = Mapping[str, Any]


class ManifestError(InvalidRequest):
    """A manifest cannot be read, or one of its rows names no image."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The images of a batch."""

    source: str
    """Path, pattern or URL."""
    kind: str
    """"csv", "jsonl", "parquet", "folder", "files" or "tar"."""
    _items: Callable[[], Iterator[BatchItem]]
    _count: Callable[[], int | None]

    def items(self) -> Iterator[BatchItem]:
        """Yields the items, each time from the beginning and in the same order. Raises ManifestError."""
        for item in self._items():
            if not 0 < len(item.key) <= MAX_KEY:
                text = f"the key {item.key[:40]!r}... has {len(item.key)} characters; give 1 to {MAX_KEY}"
                raise ManifestError(text, field=self.source)
            yield item

    def count(self) -> int | None:
        """Returns the number of items, repeated keys included; None if counting requires reading them all."""
        return self._count()


def open_manifest(source: str | os.PathLike[str]) -> Manifest:
    """Returns the manifest at a path, pattern or URL.

    Args:
        source: A CSV, TSV, JSONL or Parquet file; a folder; a pattern such as "images/**/*.jpg"; WebDataset shards such
            as "shards/train-{0000..0099}.tar"; or the URL of one of these (`s3://`, `https://` and others of fsspec).

    Raises:
        ManifestError: there is nothing of that name, or nothing that can be read.
    """
    text = os.fspath(source)
    store = Store.of(text)
    names = list(_expanded(store.path))
    if text.endswith(".tar"):
        shards = [found for name in names for found in store.matching(name)]
        if not shards:
            raise ManifestError(f"no shard matches {text!r}", field="manifest")
        return Manifest(text, "tar", partial(_tar_items, store, shards), lambda: None)
    if any(sign in store.path for sign in "*?["):
        return Manifest(text, "files", partial(_file_items, store, store.path), lambda: None)
    if store.is_folder(store.path):
        return Manifest(text, "folder", partial(_folder_items, store, store.path), partial(_count_folder, store))
    if not store.exists(store.path):
        raise ManifestError(f"there is no file, folder or pattern {text!r}", field="manifest")
    return _table(text, store)


def _table(text: str, store: "Store") -> Manifest:
    ending = posixpath.splitext(store.path)[1].lower()
    folder = posixpath.dirname(store.path)
    readers: Mapping[str, tuple[str, Callable[[], Iterator[Row]], Callable[[], int | None]]] = {
        ".csv": ("csv", partial(_csv_rows, store, ","), partial(_count_rows, store, _csv_rows, ",")),
        ".tsv": ("csv", partial(_csv_rows, store, "\t"), partial(_count_rows, store, _csv_rows, "\t")),
        ".jsonl": ("jsonl", partial(_json_rows, store), partial(_count_rows, store, _json_lines)),
        ".ndjson": ("jsonl", partial(_json_rows, store), partial(_count_rows, store, _json_lines)),
        ".parquet": ("parquet", partial(_parquet_rows, store), partial(_count_parquet, store)),
    }
    if ending not in readers:
        known = ", ".join(readers)
        raise ManifestError(f"{text!r} is no manifest; expected a folder, a pattern, .tar or {known}", field="manifest")
    kind, rows, count = readers[ending]
    return Manifest(text, kind, lambda: row_items(rows(), source=text, store=store, folder=folder), count)


@dataclass(frozen=True, slots=True)
class Store:
    """Where files are: the local file system, or a file system of fsspec."""

    path: str
    """Path without the scheme."""
    system: Any = None
    """The file system of fsspec; None for the local one."""

    @classmethod
    def of(cls, source: str) -> "Store":
        """Returns the store of a path or URL."""
        if source.startswith("file:/"):
            return cls(re.sub("^file:(//)?", "", source))
        if not _URL.match(source):
            return cls(source)
        stores = import_extra("fsspec.core", "bulk")
        try:
            system, path = stores.url_to_fs(source)
        except (ImportError, ValueError) as error:
            raise ManifestError(f"cannot read {source!r}: {error}", field="manifest") from error
        return cls(path, system)

    def read(self, path: str) -> bytes:
        """Returns a file."""
        if self.system is None:
            return Path(path).read_bytes()
        return bytes(self.system.cat_file(path))

    def open(self, path: str) -> IO[bytes]:
        """Opens a file to read it from its beginning to its end."""
        if self.system is None:
            return Path(path).open("rb")
        opened: IO[bytes] = self.system.open(path, "rb")
        return opened

    def exists(self, path: str) -> bool:
        """Returns whether there is a file."""
        return Path(path).exists() if self.system is None else bool(self.system.exists(path))

    def is_folder(self, path: str) -> bool:
        """Returns whether a path is a folder."""
        return Path(path).is_dir() if self.system is None else bool(self.system.isdir(path))

    def matching(self, pattern: str) -> list[str]:
        """Returns the files that match a pattern, sorted."""
        if not any(sign in pattern for sign in "*?["):
            return [pattern] if self.exists(pattern) else []
        if self.system is None:
            import glob  # noqa: PLC0415 - rarely needed

            return sorted(glob.glob(pattern, recursive=True))
        return sorted(self.system.glob(pattern))

    def walk(self, folder: str) -> Iterator[str]:
        """Yields the files below a folder, sorted in each folder."""
        walk = os.walk(folder) if self.system is None else self.system.walk(folder)
        for place, folders, files in walk:
            folders.sort()
            for name in sorted(files):
                yield posixpath.join(place, name)


#: The local file system.
LOCAL = Store("")


def _expanded(path: str) -> Iterator[str]:
    """Yields the paths of a range in braces, as WebDataset writes it: `train-{0000..0099}.tar`."""
    found = _BRACES.search(path)
    if found is None:
        yield path
        return
    first, last = found[1], found[2]
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{path[: found.start()]}{number:0{len(first)}d}{path[found.end() :]}")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _folder_items(store: Store, folder: str) -> Iterator[BatchItem]:
    within = lru_cache(partial(posixpath.relpath, start=folder))  # too slow to call for each file
    for path in store.walk(folder):
        if _is_image(path):
            place, name = posixpath.split(path)
            key = posixpath.normpath(posixpath.join(within(place), name))
            yield BatchItem(key=key, image=partial(store.read, path))


def _count_folder(store: Store) -> int | None:
    return sum(_is_image(path) for path in store.walk(store.path)) if store.system is None else None


def _file_items(store: Store, pattern: str) -> Iterator[BatchItem]:
    for path in store.matching(pattern):
        if _is_image(path):
            yield BatchItem(key=path, image=partial(store.read, path))


def _tar_items(store: Store, shards: Iterable[str]) -> Iterator[BatchItem]:
    """Yields the samples of WebDataset shards: consecutive members whose names differ in their endings only."""
    for shard in shards:
        name = posixpath.basename(shard).removesuffix(".tar")
        try:
            with store.open(shard) as opened, tarfile.open(fileobj=opened, mode="r|") as members:
                yield from _samples(name, members)
        except tarfile.TarError as error:
            raise ManifestError(f"cannot read the shard {shard!r}: {error}", field="manifest") from error


def _samples(shard: str, members: tarfile.TarFile) -> Iterator[BatchItem]:
    key, parts = "", dict[str, bytes]()
    for member in members:
        folder, base = posixpath.split(member.name)
        stem, _, ending = base.partition(".")
        place = posixpath.join(folder, stem)
        if not member.isfile() or not stem:
            continue
        if place != key:
            yield from _sample(shard, key, parts)
            key, parts = place, {}
        content = members.extractfile(member)
        parts[ending.lower()] = content.read() if content else b""
    yield from _sample(shard, key, parts)


def _sample(shard: str, key: str, parts: Mapping[str, bytes]) -> Iterator[BatchItem]:
    image = next((parts[ending[1:]] for ending in IMAGES if ending[1:] in parts), None)
    if image is None:
        return
    row: dict[str, Any] = {}
    if "cls" in parts:
        row["target"] = parts["cls"].decode(errors="replace").strip()
    if "json" in parts:
        try:
            described = json.loads(parts["json"])
        except ValueError as error:
            text = f"its JSON cannot be read: {error}"
            yield BatchItem(key=f"{shard}/{key}", image=partial(_refuse, text))
            return
        if isinstance(described, dict):
            row |= {name: described[name] for name in OPTION_COLUMNS if name in described}
    yield _item(f"{shard}/{key}", image, row)


def _csv_rows(store: Store, delimiter: str) -> Iterator[Row]:
    with store.open(store.path) as opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        yield from csv.DictReader(text, delimiter=delimiter)


def _json_lines(store: Store) -> Iterator[bytes]:
    with store.open(store.path) as opened:
        yield from (line for line in opened if line.strip())


def _json_rows(store: Store) -> Iterator[Row]:
    for number, line in enumerate(_json_lines(store), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"line {number} is no JSON: {error}", field=store.path) from error
        if not isinstance(row, dict):
            raise ManifestError(f"line {number} is no JSON object", field=store.path)
        yield row


@contextmanager
def _parquet(store: Store) -> Iterator[Any]:
    parquet = import_extra("pyarrow.parquet", "bulk")
    with store.open(store.path) as opened:
        yield parquet.ParquetFile(opened)


def _parquet_rows(store: Store) -> Iterator[Row]:
    with _parquet(store) as opened:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
            yield from batch.to_pylist()


def _count_parquet(store: Store) -> int | None:
    with _parquet(store) as opened:
        return int(opened.metadata.num_rows)


def _count_rows(store: Store, read: Callable[..., Iterator[Any]], *arguments: str) -> int | None:
    return sum(1 for _ in read(store, *arguments)) if store.system is None else None


def row_items(
    rows: Iterable[Row], *, source: str, store: Store = LOCAL, folder: str = "", image: str = "", key: str = "key"
) -> Iterator[BatchItem]:
    """Yields the items that rows describe.

    Args:
        rows: The rows: images, keys and options of items by the names of their columns.
        source: Name of the rows, for messages.
        store: Where paths of images are.
        folder: The folder to which they are relative.
        image: Column with the image; empty for the first of `IMAGE_COLUMNS` that has one.
        key: Column with the key; without one, it is the path or URL of the image.

    Raises:
        ManifestError: a row has no image, or no key.
    """
    names = (image,) if image else IMAGE_COLUMNS
    for number, row in enumerate(rows, start=1):
        cells = [row[name] for name in names if name in row]
        if not cells:
            columns = ", ".join(names)
            raise ManifestError(f"row {number} has no image; give one of the columns {columns}", field=source)
        found, its_name = _image(next(filter(_given, cells), None), store, folder)
        identity = str(row[key]) if _given(row.get(key)) else its_name
        if not identity:
            raise ManifestError(f"row {number} has neither a key nor a path; give the column {key}", field=source)
        yield _item(identity, found, row)


def _given(value: Any) -> bool:
    """Returns whether a cell has a value; the NaN that pandas writes for a missing one is none."""
    if isinstance(value, str | bytes | Mapping):
        return len(value) > 0
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _image(value: Any, store: Store, folder: str) -> tuple[ImageLike | Callable[[], ImageLike], str]:
    """Returns the image of a cell, and its path if it has one.

    A cell is a path, a URL, the bytes of a file, bytes and path (`datasets`), or an array of pixels.
    """
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        if content:
            return content, path or ""
        value = path
    if value is None:
        return partial(_refuse, "its row has no image: give a path, a URL or the bytes of a file"), ""
    if isinstance(value, bytes | np.ndarray):
        return value, ""
    text = str(value)
    if _URL.match(text):
        return partial(_read_url, text), text
    return partial(store.read, posixpath.join(folder, text)), text


def _read_url(url: str) -> bytes:
    store = Store.of(url)
    return store.read(store.path)


def _refuse(text: str) -> bytes:
    raise InvalidImage(text)


def _item(key: str, image: ImageLike | Callable[[], ImageLike], row: Row) -> BatchItem:
    """Returns an item with the options in its row; a wrong one fails the item when it is read."""
    options: dict[str, Any] = {}
    for name in OPTION_COLUMNS:
        value = row.get(name)
        if not _given(value):
            continue
        try:
            options["metrics" if name == "boxes" else name] = _OPTIONS[name](value)
        except (TypeError, ValueError, InvalidRequest) as error:
            text = f"the option {name} in its row is {value!r}: {error}"
            return BatchItem(key=key, image=partial(_refuse, text))
    return BatchItem(key=key, image=image, options=options)  # type: ignore[arg-type]


def _structured(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _boxes(value: Any) -> Metrics:
    return Metrics(boxes=[_box(each) for each in _structured(value)])


def _box(value: Any) -> Box:
    if isinstance(value, Mapping):
        return Box(**value)
    if len(value) != 4:
        raise ValueError("expected boxes as [left, top, right, bottom]")
    left, top, right, bottom = value
    return Box(int(left), int(top), int(right), int(bottom))


def _target(value: Any) -> int | str:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # pandas stores a column of integers as floats if one is missing
    text = str(value).strip()
    return int(text) if text.isdigit() else text


def _baseline(value: Any) -> Any:
    return value if value in _BASELINES else Baseline(kind="image", image=str(value))


def _method(value: Any) -> Any:
    """Returns a method: its name, or an object with `name` and its parameters."""
    described = json.loads(value) if isinstance(value, str) and value.startswith("{") else value
    if not isinstance(described, Mapping):
        return str(described)
    if "name" not in described:
        raise ValueError('expected a method as {"name": "igos++", "mask_size": 14}')
    return Method(described["name"], **{name: each for name, each in described.items() if name != "name"})


def _labels(value: Any) -> dict[str, str]:
    return {str(name): str(each) for name, each in dict(_structured(value)).items() if each is not None}


_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "target": _target,
    "boxes": _boxes,
    "baseline": _baseline,
    "method": _method,
    "seed": int,
    "deadline": float,
    "max_evaluations": int,
    "labels": _labels,
}
