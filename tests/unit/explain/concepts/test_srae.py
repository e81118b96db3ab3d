"""The loss is equation (1), and each of its terms does what it is there for."""

import math

import pytest
import torch
from torch import Tensor

from sagittal.explain.concepts.quality import correlation_matrix, rebuilt_share
from sagittal.explain.concepts.srae import SRAE, loss_terms, pull_away
from sagittal.explain.concepts.training import Examples, Fit, FitSettings, initialise
from sagittal.explain.parameters import InvalidParameter


def factors(count: int, images: int = 400, seed: int = 0) -> Tensor:
    """Returns independent factors, each evenly distributed around 0."""
    return torch.rand(images, count, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def shown_in(factors: Tensor, each: int = 10, noise: float = 0.05) -> Tensor:
    """Returns features, each of which is one of the factors with some noise."""
    features = factors.repeat_interleave(each, 1)
    return features + noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(9))


def network(features: Tensor, outputs: Tensor, x_features: int = 2) -> SRAE:
    srae = SRAE(features.shape[1], x_features, outputs.shape[1], 4).to(features.dtype)
    initialise(srae, features, outputs, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for number, parameter in enumerate(srae.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return srae


def test_the_terms_are_those_of_equation_1_written_out():
    features, outputs = factors(6, images=5).double(), factors(2, images=5, seed=1).double()
    srae = network(features, outputs)
    srae.requires_grad_(False)
    terms = loss_terms(srae, features, outputs, q=3.0)
    values = srae.encode(features)
    scaled, wanted = (features - features.mean(0)) / srae.feature_scale, outputs / srae.output_scale
    rebuilt = srae.decoder(values)
    missed = sum(((srae.readout.T @ values[i] - wanted[i]) ** 2).sum() for i in range(5)) / 5
    lost = sum(
        math.log(1 + 3.0 * float(sum((rebuilt[i, k] - scaled[i, k]) ** 2 for i in range(5)) / 5)) for k in range(6)
    )
    first, second = values.T
    cosine = float(first @ second / first.norm() / second.norm())
    assert float(terms.faithfulness) == pytest.approx(float(missed))
    assert float(terms.reconstruction) == pytest.approx(lost / 6)
    assert float(terms.pull_away) == pytest.approx(cosine**2)


@pytest.mark.parametrize("term", ["faithfulness", "reconstruction", "pull_away"])
def test_the_gradient_of_each_term_is_that_of_finite_differences(term: str):
    features, outputs = factors(6, images=9).double(), factors(1, images=9, seed=1).double()
    srae = network(features, outputs)
    named = dict(srae.named_parameters())

    def value(name: str, weights: Tensor) -> Tensor:
        state = {**srae.state_dict(), name: weights}
        other = SRAE(6, 2, 1, 4).double()
        other.load_state_dict(state)
        return getattr(loss_terms(other, features, outputs, q=2.0), term).detach()

    for name in ("encoder.direct.weight", "encoder.hidden.bias", "decoder.bent.weight", "readout"):
        gradient = torch.autograd.grad(
            getattr(loss_terms(srae, features, outputs, q=2.0), term), named[name], allow_unused=True
        )[0]
        nudge = torch.zeros_like(named[name])
        nudge.view(-1)[1] = 1e-6
        weights = named[name].detach()
        difference = float(value(name, weights + nudge) - value(name, weights - nudge)) / 2e-6
        found = 0.0 if gradient is None else float(gradient.view(-1)[1])
        assert found == pytest.approx(difference, abs=1e-7), name


def test_contributions_add_up_to_the_prediction():
    features, outputs = factors(6), factors(2, seed=1)
    srae = network(features, outputs, x_features=3)
    values = srae.encode(features)
    assert torch.allclose(srae.contributions(values).sum(1), srae(features), atol=1e-5)


def test_independent_factors_are_recovered_up_to_order_and_sign(fit_network):
    true = factors(3)
    features, outputs = shown_in(true), true @ torch.tensor([[1.0], [0.7], [0.4]])
    fit = fit_network(features, outputs, concepts=3)
    likeness = correlation_matrix(true, fit.srae.encode(features).detach()).abs()
    assert likeness.max(1).values.min() > 0.97
    assert sorted(likeness.argmax(1).tolist()) == [0, 1, 2]
    assert likeness.sort(1).values[:, :2].max() < 0.2


def test_more_of_an_x_feature_is_more_of_the_class_and_the_strongest_comes_first(fit_network):
    true = factors(3)
    fit = fit_network(shown_in(true), true @ torch.tensor([[0.2], [-1.0], [0.5]]), concepts=3)
    weights = fit.srae.readout[:, 0]
    effect = weights * fit.srae.encode(shown_in(true)).std(0)
    assert bool((weights > 0).all())
    assert effect.tolist() == sorted(effect.tolist(), reverse=True)


def test_without_the_pull_away_term_x_features_collapse_and_with_it_they_do_not(fit_network):
    true = factors(3)
    features, outputs = shown_in(true), true.sum(1, keepdim=True) + 12  # all of them carry what is always there
    without = fit_network(features, outputs, concepts=3, eta=0, beta=0.01)
    with_it = fit_network(features, outputs, concepts=3, eta=10, beta=0.01)
    assert float(without.terms.pull_away) > 0.7
    assert float(with_it.terms.pull_away) < 0.01


def test_without_reconstruction_the_x_feature_is_the_output_itself(fit_network):
    true = factors(2)
    both = torch.stack([true[:, 0], 0.6 * true[:, 0] + 0.8 * true[:, 1]], 1)
    features = torch.cat([both[:, :1], both[:, 1:].repeat(1, 30)], 1)  # one feature is the output, 30 the other factor
    outputs = both[:, :1]
    alone = fit_network(features, outputs, concepts=1, beta=0)
    rebuilding = fit_network(features, outputs, concepts=1, beta=20)

    def of(fit: Fit, column: Tensor) -> float:
        return float(correlation_matrix(fit.srae.encode(features).detach(), column).abs())

    assert of(alone, outputs) > 0.999
    assert of(rebuilding, outputs) < 0.99
    assert of(rebuilding, both[:, 1:]) > of(alone, both[:, 1:])
    with torch.no_grad():
        shares = [rebuilt_share(features, fit.srae.decode(fit.srae.encode(features))) for fit in (alone, rebuilding)]
    assert shares[1] > 0.9
    assert shares[0] < shares[1]


def test_the_same_seed_fits_the_same_network_and_another_seed_another(fit_network):
    true = factors(3)
    features, outputs = shown_in(true), true.sum(1, keepdim=True)
    first, again = (fit_network(features, outputs, seed=3, epochs=20) for _ in range(2))
    other = fit_network(features, outputs, seed=4, epochs=20)
    assert all(torch.equal(a, b) for a, b in zip(first.srae.parameters(), again.srae.parameters(), strict=True))
    assert not torch.equal(first.srae.encoder.hidden.weight, other.srae.encoder.hidden.weight)


def test_a_fit_that_goes_on_from_its_state_ends_as_one_that_was_never_stopped():
    true = factors(3)
    data = Examples(shown_in(true), true.sum(1, keepdim=True))
    settings = FitSettings(concepts=3, epochs=12, hidden=8)
    whole, half = Fit(data, settings, 0, {}), Fit(data, settings, 0, {})
    whole.run(1e9)
    while half.epoch < 5:
        half.run(0)
    resumed = Fit(data, settings, 0, {name: tensor.clone() for name, tensor in half.state.items()})
    resumed.run(1e9)
    assert all(torch.equal(a, b) for a, b in zip(whole.srae.parameters(), resumed.srae.parameters(), strict=True))


def test_one_x_feature_has_nothing_to_be_pulled_away_from():
    assert float(pull_away(torch.randn(5, 1))) == 0


@pytest.mark.parametrize(("name", "value"), [("concepts", 0), ("concepts", 33), ("beta", -1.0), ("epochs", 0)])
def test_settings_out_of_their_bounds_are_refused_by_name(name: str, value: float):
    with pytest.raises(InvalidParameter, match=name):
        FitSettings(**{name: value})


def test_x_features_share_a_prediction_that_many_directions_carry(fit_network):
    true = factors(8)
    features = shown_in(true * torch.linspace(3, 0.5, 8), each=4)
    fit = fit_network(features, true.sum(1, keepdim=True), concepts=4)
    with torch.no_grad():
        parts = fit.srae.contributions(fit.srae.encode(features))[..., 0].var(0)
        predicted = fit.srae(features)
    assert float(correlation_matrix(predicted, true.sum(1, keepdim=True))) > 0.98
    assert float(parts.max() / parts.sum()) < 0.9
