"""The labelled images of an audit: a folder for each class, or a table with labels."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sagittal.bulk.manifests import IMAGE_COLUMNS, IMAGES, Manifest
from sagittal.client import BatchItem, Box, InvalidRequest, Metrics, Model
from sagittal.client.batches import ItemOptions

#: Columns with the class, in the order in which they are looked for.
LABEL_COLUMNS = ("label", "target")

#: Fewest images of a group that is searched.
MIN_GROUP = 8

#: An audit reads no curves, which would cost a hundred evaluations for each image.
METRICS = Metrics(curves=False)

#: Names that a message lists.
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """An image with its class."""

    key: str
    path: Path
    label: int
    """Index of its class."""
    name: str
    """The class as the data set writes it."""
    group: str = ""
    """Images of a group are searched together."""
    mask: Path | None = None
    """An image that is not black where the object is, of the same proportions; None if there is none."""
    boxes: tuple[Box, ...] = ()
    """Boxes of the object, in pixels of the model's input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The images that are explained, and the groups that are not."""

    source: str
    images: Sequence[LabelledImage]
    left_out: Mapping[str, str]
    """Why a group is left out, by its name."""

    def manifest(self) -> Manifest:
        """Returns the images as the items of a batch."""
        return Manifest(self.source, "labelled", self._items, lambda: len(self.images))

    def _items(self) -> Iterator[BatchItem]:
        for each in self.images:
            options: ItemOptions = {"target": each.label, "metrics": METRICS}
            yield BatchItem(key=each.key, image=each.path.read_bytes, options=options)


def read_dataset(
    source: Path,
    model: Model,
    *,
    classes: Mapping[str, str | int] | None = None,
    groups: Mapping[str, str] | None = None,
    masks: Path | None = None,
) -> Dataset:
    """Returns the images at a path.

    Args:
        source: A folder with one folder for each class; or a CSV, TSV, JSON or JSONL table with the columns image (or
            path, file) and label (or target), and perhaps key, boxes, mask and group.
        model: The model, whose classes the labels must name.
        classes: The model's label or index for each label of the data set, if they differ.
        groups: The group of each label; by default, each class is a group.
        masks: A folder with a mask for each image, at the same path with the ending .png.

    Raises:
        InvalidRequest: there are no images, no two classes, or labels that the model does not have.
    """
    if not source.exists():
        raise InvalidRequest(f"there is no file or folder {source}", field="source")
    rows = list(_folder_rows(source) if source.is_dir() else _table_rows(source))
    if not rows:
        text = f"{source} has no images: give a folder with one folder of JPEG, PNG or WebP files for each class"
        raise InvalidRequest(f"{text}, or a table with the columns image and label", field="source")
    indices = _indices({each.name for each in rows}, model, classes or {})
    images = []
    for each in rows:
        mask = each.mask if each.mask or masks is None else _mask_in(masks, each.key)
        if mask is not None and not mask.exists():
            if each.mask is not None:
                raise InvalidRequest(f"{each.key}: there is no file {mask}; correct the column mask", field="mask")
            mask = None
        group = each.group or (groups or {}).get(each.name, each.name)
        images.append(replace(each, label=indices[each.name], group=group, mask=mask))
    if masks is not None and not any(each.mask for each in images):
        text = f"{masks} has no mask of any image, such as {Path(images[0].key).with_suffix('.png')}"
        raise InvalidRequest(f"{text}: name masks as their images, or give a table with a column mask", field="masks")
    return _checked(source, images)


def _mask_in(masks: Path, key: str) -> Path | None:
    """Returns the path of an image's mask; None for a key that leads out of the folder, perhaps to the image itself."""
    path = (masks / key).with_suffix(".png")
    return path if path.resolve().is_relative_to(masks.resolve()) else None


def _checked(source: Path, images: Sequence[LabelledImage]) -> Dataset:
    if len({each.label for each in images}) < 2:
        text = f"{source} has images of one class only, {images[0].name!r}: an audit compares classes, so add images"
        raise InvalidRequest(f"{text} of at least one other class", field="source")
    repeated = [key for key, number in Counter(each.key for each in images).items() if number > 1]
    if repeated:
        text = f"the key {repeated[0]!r} comes more than once; give each image once, or a column key"
        raise InvalidRequest(text, field="key")
    sizes = Counter(each.group for each in images)
    few = {name: f"{size} images; at least {MIN_GROUP} are needed" for name, size in sizes.items() if size < MIN_GROUP}
    kept = [each for each in images if each.group not in few]
    if not kept:
        text = f"no class of {source} has {MIN_GROUP} images (the largest has {max(sizes.values())}): add images, or"
        raise InvalidRequest(f"{text} put similar classes together with groups", field="groups")
    return Dataset(source=str(source), images=kept, left_out=few)


def _folder_rows(folder: Path) -> Iterator[LabelledImage]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    for path in paths:
        key = path.relative_to(folder)
        if len(key.parts) < 2:
            text = f"{key} is in no folder of a class: put the images of each class into a folder named after it"
            raise InvalidRequest(f"{text}, or give a table with the columns image and label", field="source")
        yield LabelledImage(key=key.as_posix(), path=path, label=-1, name=key.parts[0])


def _table_rows(path: Path) -> Iterator[LabelledImage]:
    for number, row in enumerate(_rows(path), start=1):
        image = next((row[name] for name in IMAGE_COLUMNS if row.get(name)), None)
        label = next((row[name] for name in LABEL_COLUMNS if row.get(name) not in (None, "")), None)
        for value, field, columns in ((image, "image", IMAGE_COLUMNS), (label, "label", LABEL_COLUMNS)):
            if value is None:
                text = f"row {number} of {path} has no {field}; give one of the columns {', '.join(columns)}"
                raise InvalidRequest(text, field=field)
        place = path.parent / str(image)
        if not place.exists():
            raise InvalidRequest(f"row {number} of {path}: there is no file {place}", field="image")
        yield LabelledImage(
            key=str(row.get("key") or image), path=place, label=-1, name=str(label), group=str(row.get("group") or ""),
            mask=path.parent / str(row["mask"]) if row.get("mask") else None,
            boxes=tuple(_boxes(row.get("boxes") or (), number)),
        )  # fmt: skip


def _rows(path: Path) -> Sequence[Mapping[str, Any]]:
    ending = path.suffix.lower()
    try:
        text = path.read_text(encoding="utf-8-sig")
        if ending in (".csv", ".tsv"):
            return list(csv.DictReader(text.splitlines(), delimiter="\t" if ending == ".tsv" else ","))
        if ending in (".jsonl", ".ndjson"):
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif ending == ".json":
            found = json.loads(text)
        else:
            known = "a folder, .csv, .tsv, .json or .jsonl"
            raise InvalidRequest(f"{path} is no data set; expected {known}", field="source")
    except ValueError as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", field="source") from error
    if not isinstance(found, list) or not all(isinstance(each, Mapping) for each in found):
        raise InvalidRequest(f"{path} is no list of objects with image and label", field="source")
    return found


def _boxes(value: Any, number: int) -> Iterator[Box]:
    try:
        for left, top, right, bottom in json.loads(value) if isinstance(value, str) else value:
            yield Box(int(left), int(top), int(right), int(bottom))
    except (TypeError, ValueError) as error:
        text = f"row {number}: {value!r} are no boxes; give [[left, top, right, bottom], ...] in pixels of the input"
        raise InvalidRequest(text, field="boxes") from error


def _indices(names: set[str], model: Model, classes: Mapping[str, str | int]) -> dict[str, int]:
    """Returns the model's class of each label. Raises InvalidRequest for labels that it does not have."""
    known: dict[str, list[int]] = {}
    for index, label in enumerate(model.labels):
        known.setdefault(_plain(label), []).append(index)
    found, unknown = {}, []
    for name in sorted(names):
        wanted = classes.get(name, name)
        choices = known.get(_plain(str(wanted)), [])
        if not choices and str(wanted).isdigit() and int(wanted) < model.classes:
            choices = [int(wanted)]
        if len(choices) > 1:
            text = f"{name!r} names the classes {', '.join(map(str, choices))} of {model.name}: give the index of one"
            raise InvalidRequest(text, field="classes")
        if choices:
            found[name] = choices[0]
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        shown = ", ".join(map(repr, unknown[:_SHOWN]))
        text = f"{model.name} has no class {shown}{more}; name them as the model does, or give the model's class"
        raise InvalidRequest(f"{text} of each label with classes", field="classes")
    return found


def _plain(label: str) -> str:
    return label.casefold().replace("_", " ").strip()
