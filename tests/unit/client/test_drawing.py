"""Pictures show what was measured, where it was measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import PIL.Image
import pytest
import torch

from sagittal.client import (
    ClassScore,
    ConceptContribution,
    ConceptPrediction,
    Curve,
    Explanation,
    Graph,
    GraphEdge,
    GraphNode,
    Mask,
    PatchSet,
    Prediction,
    Preprocessing,
)
from sagittal.client.drawing import canvas
from sagittal.client.drawing.graph import THUMBNAIL, draw_graph, place_nodes
from sagittal.client.drawing.layers import arrange
from sagittal.client.drawing.salient_part import salient_part
from sagittal.client.drawing.summary import draw_summary
from sagittal.core import models
from sagittal.engine import masking
from sagittal.engine.requests import Upsampling
from sagittal.explain.measures import curves as measured
from sagittal.imaging.fitting import fit_to_input
from sagittal.imaging.masks import patch_box, patch_mask, upsample
from sagittal.imaging.view import View, gaussian_blur, view_of
from sagittal.models import preprocessing

COMMON = {"job_id": "j", "sequence": 1, "time": datetime(2026, 1, 1, tzinfo=UTC)}
GENERATOR = np.random.default_rng(3)


def prediction(baseline: str = "blur", sigma: float = 12.0) -> Prediction:
    target = ClassScore(3, "lamp", 0.75)
    return Prediction(target=target, top=(target,), baseline_score=0.1, baseline=baseline, blur_sigma=sigma, **COMMON)


def node(*patches: int, root: bool = False) -> GraphNode:
    return GraphNode(
        id="-".join(map(str, patches)),
        patches=PatchSet(7, patches),
        score=0.5,
        relative_score=0.6,
        root=root,
        causal=None,
        **COMMON,
    )


def edge(parent: GraphNode, child: GraphNode) -> GraphEdge:
    (removed,) = set(parent.patches.patches) - set(child.patches.patches)
    return GraphEdge(parent=parent.id, child=child.id, removed_patch=removed, **COMMON)


@pytest.fixture
def seen() -> View:
    picture = GENERATOR.random((56, 56, 3), np.float32)
    return view_of(picture, "blur", 12.0)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("shape", [(60, 80), (200, 50), (1, 1)])
def test_the_picture_is_what_the_worker_gives_the_model(fit, shape) -> None:
    image = GENERATOR.integers(0, 256, (*shape, 3), np.uint8)
    ours = Preprocessing(56, 64, "bicubic", (0.5,) * 3, (0.5,) * 3, "RGB", fit)
    theirs = models.Preprocessing(
        input_size=56, resize=64, interpolation="bicubic", fit=fit, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    seen = preprocessing.to_input(image, theirs) * 0.5 + 0.5
    assert np.allclose(fit_to_input(image, ours) / 255, seen.permute(1, 2, 0).numpy(), atol=1e-6)


def test_the_blur_is_the_workers() -> None:
    picture = GENERATOR.random((56, 56, 3), np.float32)
    expected = masking.gaussian_blur(torch.from_numpy(picture).permute(2, 0, 1), 12.0).permute(1, 2, 0)
    assert np.allclose(gaussian_blur(picture, 12.0), expected.numpy(), atol=1e-5)


def test_masks_are_enlarged_as_the_workers_do() -> None:
    mask = GENERATOR.random((7, 7), np.float32)
    expected = masking.upsample(torch.from_numpy(mask)[None], (56, 56))[0, 0]
    assert np.allclose(upsample(mask, 56), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [56, 57, 224])
def test_patches_lie_where_the_workers_put_them(size) -> None:
    cells = torch.zeros(1, 7, 7)
    cells[0, 2, 5] = 1
    expected = masking.upsample(cells, (size, size), Upsampling.BOX)[0, 0].numpy()
    assert np.array_equal(patch_mask((19,), 7, size), expected)
    left, top, right, bottom = patch_box(19, 7, size)
    assert expected[top:bottom, left:right].all()
    assert expected.sum() == (right - left) * (bottom - top)


def test_an_empty_mask_leaves_the_photograph_untouched(seen) -> None:
    assert np.array_equal(seen.painted(np.zeros((7, 7), np.float32)), seen.picture)


def test_a_mask_is_never_stretched(seen, tmp_path) -> None:
    faint = Mask(saliency=np.full((7, 7), 0.2, np.float32), final=True, index=0, signed=False, **COMMON)
    explanation = Explanation(job_id="j", state="completed", prediction=prediction(), masks=(faint,))
    colours = {}
    for value in (0.0, 0.2):
        mask = replace(faint, saliency=np.full((7, 7), value, np.float32))
        fig = draw_summary(replace(explanation, masks=(mask,)), seen)
        (image,) = fig.axes[1].get_images()
        assert image.get_clim() == (0, 1)
        colours[value] = image.cmap(image.norm(value))
    assert colours[0.0] != colours[0.2]
    assert max(colours[0.0][:3]) < 0.05


def test_concepts_are_drawn_with_what_they_add_and_the_largest_comes_first(seen) -> None:
    heatmap = np.eye(7, dtype=np.float32)
    parts = tuple(
        ConceptContribution(index=index, name=name, value=1.0, contribution=contribution, heatmap=heatmap, **COMMON)
        for index, (name, contribution) in enumerate([("", 0.5), ("red breast", -2.0)])
    )
    said = ConceptPrediction(
        target=prediction().target, predicted=-1.5, output=-1.4, gap=-0.1, usual_error=0.2, **COMMON
    )
    explanation = Explanation(
        job_id="j", state="completed", prediction=prediction(), concepts=parts, concept_prediction=said
    )
    _, bars, first, second = draw_summary(explanation, seen).axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ["x2", "x1"]
    assert "red breast" in [text.get_text() for text in bars.texts]
    assert [bar.get_width() for bar in bars.patches] == [-2.0, 0.5]
    assert "add up to -1.50; the model's own output is -1.40" in bars.get_xlabel()
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["x2 red breast", "x1"]


@pytest.mark.parametrize("baseline", ["blur", "black", "mean", "noise", "image"])
def test_every_baseline_can_be_drawn(baseline) -> None:
    picture = GENERATOR.random((56, 56, 3), np.float32)
    result = view_of(picture, baseline, 12.0, picture[::-1])
    assert result.baseline.shape == picture.shape
    assert np.allclose(result.keep(np.ones((56, 56), np.float32)), picture, atol=1e-6)
    assert np.allclose(result.keep(np.zeros((56, 56), np.float32)), result.baseline)


def diamond() -> Graph:
    """Two roots whose descendants meet."""
    a, b = node(1, 2, 3, root=True), node(2, 3, 4, 5, root=True)
    ab, shared, c, last = node(1, 2), node(2, 3), node(3, 4, 5), node(3)
    edges = (edge(a, ab), edge(a, shared), edge(b, c), edge(shared, last))
    return Graph((last, shared, a, c, b, ab), edges)


def test_parents_stand_above_their_children() -> None:
    depth = {each.id: row for row, layer in enumerate(arrange(diamond())) for each in layer}
    assert all(depth[each.parent] < depth[each.child] for each in diamond().edges)
    assert depth["1-2-3"] == depth["2-3-4-5"] == 0


def test_no_two_nodes_overlap_and_all_are_drawn(seen, tmp_path) -> None:
    layers = arrange(diamond())
    places = list(place_nodes(layers, 20.0, 10.0).values())
    assert len(places) == 6
    for index, one in enumerate(places):
        for other in places[index + 1 :]:
            assert max(abs(one.x - other.x), abs(one.y - other.y)) > THUMBNAIL
    fig = draw_graph(diamond(), seen, "Why lamp?")
    assert len(fig.axes[0].get_images()) == 6
    red = Counter(tuple(patch.get_edgecolor()) for patch in fig.axes[0].patches)
    assert max(red.values()) >= 4
    canvas.save(fig, tmp_path / "graph.png")
    canvas.save(fig, tmp_path / "graph.svg")
    with PIL.Image.open(tmp_path / "graph.png") as stored:
        assert stored.format == "PNG"


def test_a_graph_of_one_node_can_be_drawn(seen) -> None:
    assert draw_graph(Graph((node(1, root=True),), ()), seen, "Why?").axes


def test_a_drawing_is_the_same_each_time(seen, tmp_path) -> None:
    for name in ("one", "two"):
        for ending in ("png", "svg"):
            canvas.save(draw_graph(diamond(), seen, "Why?"), tmp_path / f"{name}.{ending}")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def curves_of(kept: Sequence[float], removed: Sequence[float]) -> tuple[Curve, Curve]:
    fractions = np.linspace(0, 1, len(kept), dtype=np.float32)
    return tuple(
        Curve(kind=kind, fractions=fractions, scores=np.array(scores, np.float32), auc=0, auc_normalized=0,
              mask_index=0, **COMMON)
        for kind, scores in (("insertion", kept), ("deletion", removed))
    )  # fmt: skip


@pytest.mark.parametrize("place", range(5))
def test_the_part_that_is_shown_is_the_one_that_the_curves_tested(place: int) -> None:
    saliency = torch.tensor([[0.9, 0.5], [0.5, 0.1]])
    masks, shares = measured.insertion_masks(saliency, 1)
    kept = [float(number == place) for number in range(5)]
    part = salient_part(saliency.numpy(), curves_of(kept, [0.0] * 5), 2)
    assert (part.share, part.alone, part.without) == (shares[place], 1.0, 0.0)
    assert np.allclose(part.mask, masks[place].numpy())


def test_the_part_is_the_smallest_that_tells_kept_from_removed_nearly_best() -> None:
    saliency = GENERATOR.random((4, 4), np.float32)
    part = salient_part(saliency, curves_of([0, 0.7, 0.8, 0.8, 0.7], [0.8, 0.1, 0.05, 0, 0]), 8)
    assert (part.share, part.alone, part.without) == (0.5, pytest.approx(0.8), pytest.approx(0.05))
    assert salient_part(saliency, curves_of([0, 1], [1, 0])[:1], 8) is None


def test_a_set_is_drawn_on_the_baseline_that_was_tested(seen: View) -> None:
    drawn = seen.only([0], 7)
    assert np.allclose(drawn[:8, :8], seen.picture[:8, :8])
    assert np.allclose(drawn[8:, 8:], seen.baseline[8:, 8:])
