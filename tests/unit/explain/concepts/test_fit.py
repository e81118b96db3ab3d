"""A whole fit on a model: features through the engine, what it is worth, what is shown; and bad input."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from sagittal.engine.requests import Subject
from sagittal.explain.concepts import Concepts, GivenImages, Read, UnfitImages
from sagittal.explain.concepts.features import flat
from sagittal.explain.concepts.heatmaps import METHODS, winning_features
from sagittal.explain.concepts.quality import entropy, mean_shares, spread_over
from sagittal.explain.events import Checkpoint, ConceptContribution, ConceptPrediction, Progress
from sagittal.explain.parameters import InvalidParameter
from sagittal.explain.problem import Problem


class SomeUnreadable(GivenImages):
    """Every tenth image cannot be read."""

    def read(self, index: int) -> Read:
        return Read(index, fault="it is damaged") if index % 10 == 3 else super().read(index)


class Remembers:
    """Keeps features in memory."""

    def __init__(self) -> None:
        self.kept: dict = {}

    def get(self, key: str):
        return self.kept.get(key)

    def put(self, key: str, state) -> None:
        self.kept[key] = dict(state)


class Named(GivenImages):
    """Images that can be told apart from other sets."""

    digest = "these"


def test_a_fit_is_faithful_on_images_that_it_has_not_seen(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures, targets=(0, 2))
    assert fit.quality.images == 12
    assert fit.quality.faithfulness_correlation > 0.95
    assert fit.quality.class_agreement is not None
    assert fit.images == 60
    assert not fit.skipped
    assert fit.fitted.layer == "flatten"
    assert [len(one.shown) for one in fit.x_features] == [6, 6]
    assert all(shown.heatmap is not None for one in fit.x_features for shown in one.shown)


def test_it_tells_the_three_terms_and_checkpoints_as_it_goes(sees_colours, pictures, fit_images):
    _, events = fit_images(sees_colours, pictures, settings={"seeds": 2})
    told = [event for event in events if isinstance(event, Progress)]
    fractions = [event.fraction for event in told]
    assert fractions == sorted(fractions)
    assert next(event.phase for event in told if event.terms) == "fit"
    assert set(next(event.terms for event in told if event.terms)) == {
        "epoch",
        "faithfulness",
        "reconstruction",
        "pull_away",
    }
    assert any(isinstance(event, Checkpoint) for event in events)


def test_a_fit_from_a_checkpoint_ends_as_one_that_was_never_stopped(sees_colours, pictures, fit_images):
    whole, events = fit_images(sees_colours, pictures, settings={"seeds": 2, "epochs": 5})
    first = next(event for event in events if isinstance(event, Checkpoint))
    resumed, _ = fit_images(sees_colours, pictures, settings={"seeds": 2, "epochs": 5}, restored=first.state)
    assert torch.equal(whole.fitted.srae.readout, resumed.fitted.srae.readout)
    assert whole.stability == resumed.stability


def test_stability_over_seeds_is_measured(sees_colours, pictures, fit_images):
    alone, _ = fit_images(sees_colours, pictures)
    several, _ = fit_images(sees_colours, pictures, settings={"seeds": 2})
    assert alone.stability is None
    assert 0 < several.stability <= 1


def test_unreadable_images_are_skipped_counted_and_listed(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures, source=SomeUnreadable(pictures))
    assert [(read.index, read.fault) for read in fit.skipped] == [
        (index, "it is damaged") for index in range(3, 60, 10)
    ]
    assert fit.images == 54


def test_features_of_the_same_images_are_extracted_once(sees_colours, pictures, fit_images):
    cache = Remembers()
    first, _ = fit_images(sees_colours, pictures, source=Named(pictures), cache=cache)
    assert len(cache.kept) == 1
    second, events = fit_images(sees_colours, pictures, source=Named(pictures), cache=cache)
    assert not [event for event in events if isinstance(event, Progress) and event.phase == "features"]
    assert torch.equal(first.fitted.srae.readout, second.fitted.srae.readout)


def test_crops_are_fitted_too_but_never_measured_on(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures, settings={"views": 3})
    assert fit.quality.images == 12
    assert fit.quality.faithfulness_correlation > 0.95


def test_fewer_images_than_x_features_are_refused(sees_colours, pictures, fit_images):
    with pytest.raises(UnfitImages, match=r"there are 4 images; 5 x-features need at least 7.*send more"):
        fit_images(sees_colours, pictures[:4], settings={"concepts": 5})


def test_images_that_the_layer_cannot_tell_apart_are_refused(sees_colours, pictures, fit_images):
    with pytest.raises(UnfitImages, match="features are the same for every image"):
        fit_images(sees_colours, pictures[:1].repeat(20, 1, 1, 1))


def test_a_layer_that_does_not_exist_names_those_that_do(sees_colours, pictures, fit_images):
    with pytest.raises(InvalidParameter, match=r"layer: 'head' is none of .*; give one of conv, .*flatten"):
        fit_images(sees_colours, pictures, layer="head")


def test_the_output_itself_is_no_layer_to_fit(sees_colours, pictures, fit_images):
    with pytest.raises(InvalidParameter, match="'fc' has no features of images below the output"):
        fit_images(sees_colours, pictures, layer="fc")


@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_a_layer_with_places_is_read_by_their_mean(layer, sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures, layer=layer)
    assert fit.fitted.layer == layer
    assert fit.x_features[0].shown[0].heatmap is not None


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_explained_by_parts_that_add_up(method, sees_colours, pictures, fit_images, on_engine):
    fit, _ = fit_images(sees_colours, pictures, targets=(0, 2))
    image = pictures[5]
    subject = Subject(image, torch.zeros_like(image), 2)
    problem = Problem(subject=subject, unmasked_score=0.5, baseline_score=0.1)
    _, events = on_engine(sees_colours, Concepts(fitted=fit.fitted, heatmap_method=method).explain(problem))
    (said,) = [event for event in events if isinstance(event, ConceptPrediction)]
    parts = [event for event in events if isinstance(event, ConceptContribution)]
    assert sum(part.contribution for part in parts) == pytest.approx(said.predicted, abs=1e-5)
    with torch.no_grad():
        assert said.output == pytest.approx(float(sees_colours(image[None])[0, 2]), abs=1e-5)
    assert said.usual_error == fit.quality.faithfulness_error
    assert len(parts) == 2
    assert all(0 <= float(part.heatmap.saliency.min()) <= float(part.heatmap.saliency.max()) <= 1 for part in parts)


def test_x_features_that_are_merged_are_shown_as_one(sees_colours, pictures, fit_images, on_engine):
    fit, _ = fit_images(sees_colours, pictures)
    merged = dataclasses.replace(fit.fitted, names=("hue", ""), merged_into=(0, 0))
    image = pictures[5]
    problem = Problem(subject=Subject(image, torch.zeros_like(image), 0), unmasked_score=0.5, baseline_score=0.1)
    _, events = on_engine(sees_colours, Concepts(fitted=merged).explain(problem))
    (said,) = [event for event in events if isinstance(event, ConceptPrediction)]
    (part,) = [event for event in events if isinstance(event, ConceptContribution)]
    assert part.name == "hue"
    assert part.contribution == pytest.approx(said.predicted, abs=1e-5)


def test_a_class_that_the_set_does_not_predict_is_refused(sees_colours, pictures, fit_images, on_engine):
    fit, _ = fit_images(sees_colours, pictures)
    problem = Problem(subject=Subject(pictures[0], pictures[0] * 0, 1), unmasked_score=0.5, baseline_score=0.1)
    with pytest.raises(InvalidParameter, match="predicts the classes 0, not 1"):
        on_engine(sees_colours, Concepts(fitted=fit.fitted).explain(problem))


class LooksLeft(nn.Module):
    """Its first feature is what is in the left half of the image, its second what is in the right."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d((1, 2))
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(6, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]]))
            self.fc.bias.zero_()

    def forward(self, inputs):
        return self.fc(self.flatten(self.pool(self.relu(inputs))))


def test_excitation_from_an_x_feature_shows_the_half_that_it_reads(pictures, fit_images):
    fit, _ = fit_images(LooksLeft().eval().requires_grad_(False), pictures, settings={"concepts": 1})
    (one,) = fit.x_features
    heat = one.shown[0].heatmap
    assert float(heat[:, : heat.shape[1] // 2].sum()) > 0.6 * float(heat.sum())


def test_winning_probability_of_features_sums_to_one(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures)
    features = torch.rand(1, 12)
    assert float(winning_features(fit.fitted.srae, features, 0).sum()) == pytest.approx(1, abs=1e-5)


def test_flat_features_are_channels_averaged_over_places():
    output = torch.arange(24.0).view(1, 2, 3, 4)
    assert flat(output, (30, 40)).tolist() == [[5.5, 17.5]]


def test_the_mass_of_a_heatmap_is_cut_up_among_the_parts_and_what_lies_on_none_does_not_count():
    heat = torch.zeros(4, 4)
    heat[:2, :2], heat[:2, 2:], heat[2:] = 3, 1, 8
    parts = {"left": (0.0, 0.0, 0.4, 0.4), "right": (0.6, 0.0, 1.0, 0.4)}
    assert spread_over(heat, parts) == pytest.approx({"left": 0.75, "right": 0.25}, abs=0.02)
    assert spread_over(torch.zeros(4, 4), parts) == {}


def test_the_entropy_of_shares_counts_the_parts():
    assert entropy({"beak": 1.0}) == 0
    assert math.exp(entropy(dict.fromkeys("abcd", 0.25))) == pytest.approx(4)
    shares = mean_shares([{"a": 0.2, "b": 0.8}, {}, {"b": 1.0}])
    assert list(shares.items()) == [("b", pytest.approx(0.9)), ("a", pytest.approx(0.1))]


def test_an_x_feature_that_reads_the_left_half_covers_one_of_two_parts(pictures, fit_images):
    halves = {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0)}
    source = GivenImages(pictures, parts=dict.fromkeys(range(0, 60, 2), halves))
    looks_left = LooksLeft().eval().requires_grad_(False)
    fit, _ = fit_images(looks_left, pictures, source=source, settings={"concepts": 1, "beta": 0.0})
    assert 0 < fit.locality.images < fit.quality.images
    (shares,) = fit.locality.shares
    assert next(iter(shares)) == "left"
    assert fit.locality.parts_covered == pytest.approx(math.exp(fit.locality.mean_entropy))
    assert fit.locality.parts_covered < 1.9


def test_without_annotations_there_is_no_locality(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures)
    assert fit.locality.mean_entropy is fit.locality.parts_covered is None
    assert not fit.warnings


def test_annotations_of_images_that_are_not_held_out_say_so(sees_colours, pictures, fit_images):
    fit, _ = fit_images(sees_colours, pictures)
    fitted_only = next(
        index
        for index in range(60)
        if not fit_images(sees_colours, pictures, source=_annotated(pictures, index))[0].locality.images
    )
    fit, _ = fit_images(sees_colours, pictures, source=_annotated(pictures, fitted_only))
    (warning,) = fit.warnings
    assert warning.reason == "LOCALITY_NOT_MEASURED"
    assert "none of the 12 held-out images has annotated parts" in warning.message


def _annotated(pictures, index):
    return GivenImages(pictures, parts={index: {"all": (0.0, 0.0, 1.0, 1.0)}})
