"""X-features as independent components, on features whose causes are known at every position."""

import pytest
import torch
from torch import Tensor, nn

from sagittal.core.errors import InvalidRequest
from sagittal.explain.concepts import FitSettings, UnfitImages
from sagittal.explain.concepts.components import Components
from sagittal.explain.concepts.quality import correlation_matrix, stability
from sagittal.explain.concepts.training import Examples
from sagittal.explain.events import Checkpoint, Progress
from sagittal.v1 import concept_pb2
from sagittal.worker.concepts.jobs import fit_settings

CAUSES, IMAGES, POSITIONS, FEATURES = 4, 200, 16, 12


@pytest.fixture
def places() -> Tensor:
    """Where each cause is: in 40 % of the images, at one of the positions, in some strength."""
    generator = torch.Generator().manual_seed(0)
    there = (torch.rand(IMAGES, 1, CAUSES, generator=generator) < 0.4).float()
    where = torch.rand(IMAGES, POSITIONS, CAUSES, generator=generator)
    at = (where == where.amax(1, keepdim=True)).float()
    return there * at * (0.5 + torch.rand(IMAGES, 1, CAUSES, generator=generator))


@pytest.fixture
def data(places) -> Examples:
    """Every feature is a mixture of all causes; the first two make the class."""
    generator = torch.Generator().manual_seed(1)
    positions = places @ torch.randn(CAUSES, FEATURES, generator=generator)
    positions = positions + 0.01 * torch.randn(IMAGES, POSITIONS, FEATURES, generator=generator)
    outputs = 3 + places.sum(1) @ torch.tensor([[2.0], [1.0], [0.0], [0.0]])
    return Examples(positions.mean(1), outputs, positions.flatten(0, 1))


def fitted(data: Examples, seed: int = 0, **settings):
    fit = Components(data, FitSettings(**{"concepts": CAUSES, "method": "components", **settings}), seed, {})
    fit.run(1e9)
    return fit.finish().requires_grad_(False)


def test_each_cause_has_an_x_feature_of_its_own(data, places) -> None:
    likeness = correlation_matrix(fitted(data).encode(data.features), places.mean(1)).abs()
    assert (likeness.max(0).values > 0.95).all()
    assert len(set(likeness.argmax(0).tolist())) == CAUSES


def test_contributions_predict_the_output_and_components_rebuild_the_features(data) -> None:
    srae = fitted(data)
    values = srae.encode(data.features)
    assert torch.allclose(srae.contributions(values).sum(1), srae(data.features), atol=1e-4)
    assert correlation_matrix(srae(data.features), data.outputs) > 0.99
    assert (srae(data.features) - data.outputs).abs().mean() < 0.1
    lost = (srae.decode(values) - data.features).square().sum()
    assert lost < 0.05 * (data.features - data.features.mean(0)).square().sum()


def test_the_causes_of_the_class_come_first_and_increase_it(data, places) -> None:
    srae = fitted(data)
    likeness = correlation_matrix(srae.encode(data.features), places.mean(1))
    assert likeness.argmax(1)[:2].tolist() == [0, 1]
    spread = srae.contributions(srae.encode(data.features))[..., 0].std(0)
    assert spread[2:].max() < 0.1 * spread[0]


def test_other_seeds_find_the_same_x_features(data) -> None:
    assert stability([fitted(data, seed).encode(data.features) for seed in range(3)]) > 0.99


def test_it_resumes_from_any_epoch(data) -> None:
    settings = FitSettings(concepts=CAUSES, method="components", epochs=6)
    whole = Components(data, settings, 0, {})
    whole.run(1e9)
    stopped = Components(data, settings, 0, {})
    stopped.run(0)
    assert stopped.epoch == 1
    resumed = Components(data, settings, 0, stopped.state)
    resumed.run(1e9)
    finished = Components(data, settings, 0, whole.result)
    assert finished.done
    for each in (resumed, finished):
        assert torch.allclose(whole.finish().readout, each.finish().readout, atol=1e-4)


def test_more_components_than_features_are_refused(data) -> None:
    with pytest.raises(UnfitImages, match="has 12 features, fewer than 13 x-features"):
        fitted(data, concepts=FEATURES + 1)


def test_the_method_of_a_request_is_used_and_one_that_does_not_exist_is_refused() -> None:
    assert fit_settings(concept_pb2.ConceptFit(method="components")).method == "components"
    assert fit_settings(concept_pb2.ConceptFit()).method == "srae"
    with pytest.raises(InvalidRequest, match="is 'guess'; give one of srae, components"):
        fit_settings(concept_pb2.ConceptFit(method="guess"))


class ColoursAtPlaces(nn.Module):
    """The logits are the means of three rectified channels, which are seen at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 3, 1, bias=False)
        self.mean = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.seen.weight.data = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1]]).view(3, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.mean(self.seen(images)) * 2


@pytest.mark.parametrize("views", [0, 2])
def test_a_whole_fit_reads_the_last_layer_with_positions_and_is_faithful(pictures, fit_images, views) -> None:
    module = ColoursAtPlaces().eval().requires_grad_(False)
    settings = {"method": "components", "concepts": 3, "views": views}
    fit, events = fit_images(module, pictures, targets=(0, 2), settings=settings)
    assert fit.fitted.layer == "mean.0"
    assert fit.quality.faithfulness_correlation > 0.9
    assert any(isinstance(event, Progress) and "reconstruction" in event.terms for event in events)
    assert any(isinstance(event, Checkpoint) for event in events)
    assert all(shown.heatmap is not None for one in fit.x_features for shown in one.shown)
