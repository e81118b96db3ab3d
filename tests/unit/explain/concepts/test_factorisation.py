"""X-features by non-negative factorisation, on features that are sums of known parts."""

import pytest
import torch

from sagittal.core.errors import InvalidRequest
from sagittal.explain.concepts import FitSettings, UnfitImages
from sagittal.explain.concepts.factorisation import Factorisation
from sagittal.explain.concepts.quality import correlation_matrix, stability
from sagittal.explain.concepts.training import Examples
from sagittal.explain.events import Checkpoint, Progress
from sagittal.v1 import concept_pb2
from sagittal.worker.concepts.jobs import fit_settings

PARTS = 4
IMAGES = 300


@pytest.fixture
def causes() -> torch.Tensor:
    """Whether each of four things is in an image: any of them, independently, in some strength."""
    generator = torch.Generator().manual_seed(0)
    there = (torch.rand(IMAGES, PARTS, generator=generator) < 0.4).float()
    return there * (0.5 + torch.rand(IMAGES, PARTS, generator=generator))


@pytest.fixture
def data(causes) -> Examples:
    """Each cause has six features of its own, of which two are shared; two causes make the class."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.zeros(PARTS, 20)
    for number in range(PARTS):
        parts[number, 4 * number : 4 * number + 6] = 0.5 + torch.rand(6, generator=generator)
    features = causes @ parts + 0.02 * torch.rand(IMAGES, 20, generator=generator)
    return Examples(features, causes @ torch.tensor([[2.0], [1.0], [0.0], [0.0]]))


def fitted(data: Examples, seed: int = 0, **settings):
    fit = Factorisation(data, FitSettings(concepts=PARTS, method="factorisation", **settings), seed, {})
    fit.run(1e9)
    return fit.finish().requires_grad_(False)


def test_each_cause_has_an_x_feature_of_its_own(data, causes) -> None:
    likeness = correlation_matrix(fitted(data).encode(data.features), causes)
    assert (likeness.max(0).values > 0.95).all()
    assert len(set(likeness.argmax(0).tolist())) == PARTS


def test_contributions_predict_the_output_and_parts_rebuild_the_features(data) -> None:
    srae = fitted(data)
    values = srae.encode(data.features)
    assert torch.allclose(srae.contributions(values).sum(1), srae(data.features), atol=1e-5)
    assert correlation_matrix(srae(data.features), data.outputs) > 0.99
    lost = (srae.decode(values) - data.features).square().sum()
    assert lost < 0.05 * (data.features - data.features.mean(0)).square().sum()


def test_the_causes_of_the_class_come_first_and_others_contribute_nothing(data, causes) -> None:
    srae = fitted(data)
    values = srae.encode(data.features)
    assert correlation_matrix(values, causes).argmax(1)[:2].tolist() == [0, 1]
    spread = srae.contributions(values)[..., 0].std(0)
    assert spread[2:].max() < 0.1 * spread[0]


def test_other_seeds_find_the_same_x_features(data) -> None:
    values = [fitted(data, seed).encode(data.features) for seed in range(3)]
    assert stability(values) > 0.95


def test_it_resumes_from_any_epoch(data) -> None:
    settings = FitSettings(concepts=PARTS, method="factorisation", epochs=6)
    whole = Factorisation(data, settings, 0, {})
    whole.run(1e9)
    stopped = Factorisation(data, settings, 0, {})
    stopped.run(0)
    assert stopped.epoch == 1
    resumed = Factorisation(data, settings, 0, stopped.state)
    resumed.run(1e9)
    assert torch.allclose(whole.finish().readout, resumed.finish().readout, atol=1e-4)
    finished = Factorisation(data, settings, 0, whole.result)
    assert finished.done
    assert torch.allclose(whole.finish().readout, finished.finish().readout, atol=1e-4)


def test_negative_features_are_refused(data) -> None:
    with pytest.raises(UnfitImages, match="has negative features"):
        fitted(Examples(data.features - 1, data.outputs))


def test_the_method_of_a_request_is_used_and_one_that_does_not_exist_is_refused() -> None:
    assert fit_settings(concept_pb2.ConceptFit(method="factorisation")).method == "factorisation"
    assert fit_settings(concept_pb2.ConceptFit()).method == "srae"
    with pytest.raises(InvalidRequest, match="is 'guess'; give one of srae, factorisation"):
        fit_settings(concept_pb2.ConceptFit(method="guess"))


def test_a_whole_fit_tells_its_terms_and_is_faithful(sees_colours, pictures, fit_images) -> None:
    fit, events = fit_images(
        sees_colours, pictures, targets=(0, 2), settings={"method": "factorisation", "concepts": 3}
    )
    assert fit.quality.faithfulness_correlation > 0.9
    assert any(isinstance(event, Progress) and "reconstruction" in event.terms for event in events)
    assert any(isinstance(event, Checkpoint) for event in events)
    assert all(shown.heatmap is not None for one in fit.x_features for shown in one.shown)
