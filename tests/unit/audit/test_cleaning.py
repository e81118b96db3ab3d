"""The masks of the cleaning list are what the intervention covers, in the pixels of the image's file."""

import csv
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from audited_world import GRID, RED, SIZE, draw, evidence_of

from sagittal.audit import interventions
from sagittal.audit.candidates import Candidate
from sagittal.audit.dataset import LabelledImage
from sagittal.audit.runs import Explained, write_cleaning_list
from sagittal.client import Preprocessing

HOW = Preprocessing(
    input_size=SIZE, resize=SIZE, interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3, channel_order="RGB",
    fit="squash",
)  # fmt: skip

#: Cells of a corner's shape: an upright bar, and a lying one below it.
CORNER = np.zeros((GRID, GRID), bool)
CORNER[2:6, 1] = CORNER[5, 1:4] = True


def cleaned(folder, kind: str, region: np.ndarray, scale: int) -> tuple[dict[str, str], np.ndarray]:
    """Returns the row of an image whose file is larger than the model's input, and the mask that it names."""
    image = next(each for each in draw(1, marked=0) if each.label == RED)
    path = folder / "image.png"
    PIL.Image.fromarray(image.pixels).resize((SIZE * scale, SIZE * scale)).save(path)
    evidence = evidence_of([image], reads_mark=False)
    listed = SimpleNamespace(key=image.key, presence=0.5, listed=True, box=(0, 0, SIZE, SIZE))
    finding = SimpleNamespace(id="red/1", severity="high", group="red", listing=(listed,))
    tested = interventions.Tested(
        candidate=Candidate(group="red", kinds=(kind,), regions={0: region}), removed=None, added=None
    )
    found = SimpleNamespace(confirmed=[SimpleNamespace(finding=finding, tested=tested, regions={0: region})])
    labelled = LabelledImage(key=image.key, path=path, label=RED, name="red")
    explained = Explained(
        evidence=evidence, left_out={}, failures={}, doubtful=(), method="igos++", digest="d",
        images={image.key: labelled},
    )  # fmt: skip
    written = write_cleaning_list(folder, explained, found, HOW)
    row = next(csv.DictReader(written.read_text().splitlines()))
    with PIL.Image.open(folder / row["mask"]) as opened:
        return row, np.asarray(opened)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_mask_has_the_exact_shape_of_the_region_and_the_row_its_box(tmp_path, scale: int) -> None:
    row, mask = cleaned(tmp_path, "place", CORNER, scale)
    cell = SIZE // GRID * scale
    np.testing.assert_array_equal(mask, np.kron(CORNER, np.ones((cell, cell), bool)))
    assert [int(row[name]) // cell for name in ("left", "top", "right", "bottom")] == [1, 2, 4, 6]


def test_the_mask_of_a_background_is_all_but_the_object(tmp_path) -> None:
    _, mask = cleaned(tmp_path, "background", np.ones((GRID, GRID), bool), 1)
    assert mask.sum() == SIZE**2 - 64
