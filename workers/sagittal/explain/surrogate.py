"""Fits a surrogate of the model to scored occlusions of one image (see `sagittal.imaging.surrogates`).

Surrogates for one prediction go back to Ribeiro et al. (Why Should I Trust You?, KDD 2016), whose LIME is linear in
what is shown. Cells do not interact in it, nor does it saturate. This one is a Gaussian process. The relevance
of each cell is learnt as in recursive feature machines (Radhakrishnan et al., Science 2024): it is the mean squared
gradient of the previous fit. The scale of the relevance and the noise have the least leave-one-out error.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sagittal.engine.masking import gaussian_blur
from sagittal.explain.events import Surrogate
from sagittal.imaging.surrogates import Floats, flat, similarity

LEAST = 20
"""Fewest scored occlusions to which a surrogate is fitted."""

MOST = 2000
"""Most scored occlusions to which a surrogate is fitted: memory and time are quadratic and cubic in it."""

SUBSET = 400
"""Maximum number of occlusions, drawn at random, that relevance and noise are chosen on: the cost is cubic in it."""

ROUNDS = 2
"""Rounds in which the relevance is learnt, after the first with equal relevance."""

WIDTH = 0.8
"""Standard deviation of the blur of the relevance, in cells: cells nearby are alike."""

EQUAL = 0.02
"""Relevance that each cell has at least, as a share of the mean."""

SCALES = (0.5, 0.7, 1.0, 1.4, 2.0)
"""Scales of the similarity that are tried, in units of the occlusions' standard deviation."""

NOISES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Noises that are tried."""

LARGEST = 1000.0
"""Scores count as at most this many times the unmasked score, which may be tiny: half precision holds it."""

FLAT = 1e-9
"""Variance of the roots of the scores below which there is nothing to explain."""


def fit(occlusions: Tensor, scores: Tensor, unmasked_score: float) -> Surrogate:
    """Returns the surrogate of scored occlusions, at least two.

    Args:
        occlusions: Share of each cell that is shown, of shape (n, grid, grid).
        scores: Of shape (n,).
        unmasked_score: The score of the image.
    """
    relative = (scores.double() / max(unmasked_score, 1e-12)).clamp(0, LARGEST).numpy()
    shown = flat(occlusions.numpy())
    roots = np.sqrt(relative)
    some = np.random.default_rng(0).permutation(len(shown))[:SUBSET]
    relevance, noise = _chosen(shown[some], roots[some])
    inverse = np.linalg.inv(similarity(shown, shown, relevance) + noise * np.eye(len(shown)))
    left_out = roots - inverse @ (roots - roots.mean()) / np.diag(inverse)
    return Surrogate(
        occlusions=occlusions,
        scores=torch.from_numpy(relative),
        relevance=torch.from_numpy(relevance).view(occlusions.shape[1:]),
        noise=noise,
        usual_error=float(np.abs(left_out.clip(0) ** 2 - relative).mean()),
    )


def effects(surrogate: Surrogate) -> Tensor:
    """Returns the mean effect of showing each cell, (grid, grid), as a share of the unmasked score.

    It is the gradient of the prediction, averaged over the scored occlusions.
    """
    shown, relevance = flat(surrogate.occlusions.numpy()), surrogate.relevance.numpy().ravel()
    roots = np.sqrt(surrogate.scores.numpy())
    similar = similarity(shown, shown, relevance)
    weights = np.linalg.solve(similar + surrogate.noise * np.eye(len(shown)), roots - roots.mean())
    predicted = similar @ weights + roots.mean()
    mean = (2 * predicted.clip(0)[:, None] * _gradients(shown, similar, weights, relevance)).mean(0)
    return torch.from_numpy(mean).view(surrogate.relevance.shape)


def _chosen(shown: Floats, roots: Floats) -> tuple[Floats, float]:
    """Returns the relevance and the noise with the least leave-one-out error."""
    importance, best, least = np.ones(shown.shape[1]), (np.ones(shown.shape[1]), NOISES[-1]), np.inf
    if roots.var() < FLAT:
        return best
    for _ in range(1 + ROUNDS):
        spread = (importance * shown.var(0)).sum()
        tried = [importance / (spread * scale**2) for scale in SCALES]
        error, relevance, noise, gradients = min((_tried(shown, roots, each) for each in tried), key=lambda one: one[0])
        if error < least:
            least, best = error, (relevance, noise)
        importance = _blurred((gradients**2).mean(0))
        importance = importance / importance.mean() + EQUAL
    return best


def _tried(shown: Floats, roots: Floats, relevance: Floats) -> tuple[float, Floats, float, Floats]:
    """Returns the least leave-one-out error of a relevance, the relevance, the noise, and the fit's gradients."""
    similar, centred = similarity(shown, shown, relevance), roots - roots.mean()
    values, vectors = np.linalg.eigh(similar)
    turned = vectors.T @ centred

    def error(noise: float) -> float:
        left_out = vectors @ (turned / (values + noise)) / (vectors**2 @ (1 / (values + noise)))
        return float((left_out**2).mean())

    noise = min(NOISES, key=error)
    weights = vectors @ (turned / (values + noise))
    return error(noise), relevance, noise, _gradients(shown, similar, weights, relevance)


def _blurred(values: Floats) -> Floats:
    side = math.isqrt(len(values))
    blurred: Floats = gaussian_blur(torch.from_numpy(values).view(1, side, side), WIDTH).numpy().ravel()
    return blurred


def _gradients(shown: Floats, similar: Floats, weights: Floats, relevance: Floats) -> Floats:
    """Returns the gradient of the fitted root at each occlusion, of shape (n, cells)."""
    gradients: Floats = ((similar * weights) @ shown - (similar @ weights)[:, None] * shown) * relevance
    return gradients
