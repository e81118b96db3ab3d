"""Drawn birds: what is stated about an image holds in its pixels."""

import json

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner

from sagittal.cli.app import app
from sagittal.synthetic import (
    CLASSES,
    MARKS,
    MATTERING,
    PARTS,
    RULES,
    TRAITS,
    Mark,
    Scene,
    class_of,
    draw,
    sample_images,
    sample_scene,
    sample_traits,
    satisfies,
)


@pytest.fixture
def scene() -> Scene:
    rng = np.random.default_rng(3)
    return sample_scene(sample_traits("woodpecker", rng), rng)


def test_the_same_scene_is_the_same_drawing_at_any_time(scene) -> None:
    first, second = draw(scene, 48), draw(scene, 48)
    assert (first.image == second.image).all()
    assert (first.parts == second.parts).all()


def test_every_part_is_visible_in_its_pixels_alone(scene) -> None:
    drawing = draw(scene, 96)
    assert all(drawing.mask(part).any() for part in PARTS)
    assert drawing.bird.sum() == sum(drawing.mask(part).sum() for part in PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_another_trait_changes_pixels_of_its_part_alone(scene, part) -> None:
    before = draw(scene, 64)
    for trait in TRAITS[part]:
        after = draw(scene.swap(part, trait), 64)
        changed = (before.image != after.image).any(2)
        # A pixel at the edge of a part shows a little of it. Plain parts have the colour of what is beside them.
        beside = {"body": ("tail", "belly", "crown"), "wing": ("wing bars",)}.get(part, ())
        near = _widened(np.any([each.mask(name) for each in (before, after) for name in (part, *beside)], axis=0))
        assert not (changed & ~near).any()
        assert changed.any() == (trait != scene.traits[part])


def test_a_removed_part_has_no_pixels_and_leaves_the_rest(scene) -> None:
    before, after = draw(scene, 64), draw(scene.remove("crown"), 64)
    assert not after.mask("crown").any()
    assert not ((before.image != after.image).any(2) & ~_widened(before.mask("crown"))).any()


def test_a_recoloured_part_has_that_colour(scene) -> None:
    drawing = draw(scene.recolour("crown", (0, 255, 0)), 96)
    red, green, blue = drawing.image[drawing.mask("crown")].astype(float).mean(0)
    assert green > 2 * max(red, blue)


def test_images_satisfy_the_rule_of_their_class_and_no_other() -> None:
    samples = list(sample_images(12 * len(CLASSES), size=32))
    for sample in samples:
        assert class_of(sample.scene.traits) == sample.label
        assert bool(sample.reasons) == bool(RULES[sample.label])
    arms = [[reason in sample.reasons for reason in RULES["woodpecker"]] for sample in samples[:: len(CLASSES)]]
    assert [True, False] in arms
    assert [False, True] in arms


def test_half_of_a_conjunction_and_parts_that_never_matter_occur_in_other_classes() -> None:
    rng = np.random.default_rng(0)
    birds = [sample_traits("sparrow", rng) for _ in range(40)]
    for reason in RULES["warbler"] + RULES["wagtail"] + RULES["kingfisher"]:
        for part, trait in reason.items():
            assert any(satisfies(traits, {part: trait}) for traits in birds)
    for part in set(PARTS) - MATTERING:
        assert {traits[part] for traits in birds} == set(TRAITS[part])


def test_an_image_depends_on_its_index_and_the_seed_alone() -> None:
    few, many = list(sample_images(3, size=32)), list(sample_images(5, size=32))
    assert all((one.image == other.image).all() for one, other in zip(few, many, strict=False))
    assert (next(sample_images(1, seed=1, size=32)).image != few[0].image).any()


@pytest.mark.parametrize("kind", MARKS)
def test_a_mark_is_in_the_given_share_of_its_class_and_changes_its_pixels_alone(kind) -> None:
    mark = Mark(kind, {"woodpecker": 1.0, "sparrow": 0.5})
    samples = list(sample_images(12 * len(CLASSES), size=32, mark=mark))
    marked = {name: [each for each in samples if each.label == name and each.mark is not None] for name in CLASSES}
    assert len(marked["woodpecker"]) == 12
    assert 1 <= len(marked["sparrow"]) <= 11
    assert not any(marked[name] for name in set(CLASSES) - {"woodpecker", "sparrow"})
    for sample in marked["woodpecker"]:
        changed = (sample.image != sample.drawing.image).any(2)
        assert changed.any()
        assert not (changed & ~_widened(sample.mark)).any()


def test_marks_change_nothing_else() -> None:
    plain, marked = sample_images(4, size=32), sample_images(4, size=32, mark=Mark("printed", {"warbler": 1.0}))
    for one, other in zip(plain, marked, strict=True):
        assert one.scene == other.scene
        assert (one.drawing.image == other.drawing.image).all()


def test_unknown_names_and_impossible_shares_are_refused(scene) -> None:
    with pytest.raises(ValueError, match="'pink' is no trait of it; give one of plain, red, blue"):
        scene.swap("crown", "pink")
    with pytest.raises(ValueError, match="'nose' is no part"):
        scene.remove("nose")
    with pytest.raises(ValueError, match="no kind of mark"):
        Mark("invisible", {})
    with pytest.raises(ValueError, match="between 0 and 1"):
        Mark("printed", {"warbler": 1.5})


def test_demo_data_writes_images_with_what_is_known_about_them(tmp_path) -> None:
    out = tmp_path / "birds"
    arguments = ["demo-data", str(out), "--images", "12", "--size", "48", "--mark", "object", "--marked", "sparrow=1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    labels, rules = (json.loads((out / name).read_text()) for name in ("labels.json", "rules.json"))
    boxes = json.loads((out / "images" / "parts.json").read_text())
    assert [entry["name"] for entry in labels[:6]] == list(CLASSES)
    assert [entry["mark"] is not None for entry in labels] == [entry["name"] == "sparrow" for entry in labels]
    for entry, sample in zip(labels, sample_images(12, size=48, mark=Mark("object", {"sparrow": 1.0})), strict=True):
        with PIL.Image.open(out / entry["file"]) as image, PIL.Image.open(out / entry["mask"]) as mask:
            assert (np.asarray(image) == sample.image).all()
            crown = np.asarray(mask) == rules["parts"].index("crown")
        assert (crown == sample.drawing.mask("crown")).all()
        left, top, right, bottom = (round(48 * edge) for edge in boxes[entry["file"].removeprefix("images/")]["crown"])
        assert crown[top:bottom, left:right].sum() == crown.sum()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "has a labels.json already" in again.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mark", "printed"], "both or neither"),
        (["--mark", "printed", "--marked", "penguin=1"], "'penguin=1' is no CLASS=SHARE"),
        (["--mark", "printed", "--marked", "sparrow=2"], "give a share from 0 to 1"),
    ],
)
def test_demo_data_names_the_fault_of_an_option(tmp_path, arguments, said) -> None:
    result = CliRunner().invoke(app, ["demo-data", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()


def _widened(mask: np.ndarray) -> np.ndarray:
    """Returns a mask with the pixels around it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
