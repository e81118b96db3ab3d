"""I-GOS, iGOS+ and iGOS++ with `published()` against a slow, literal transcription of their papers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from known_models import LEFT, RIGHT, LooksAtRegions, image

from sagittal.explain import IGOS, IGOSPlus, IGOSPlusPlus
from sagittal.explain.masks.optimisation import PUBLISHED, Additions

SIZE, STEPS, POINTS = 7, 15, 20
L1, TV = 1.0, 20.0


def score(model, picture, baseline, mask):
    """f_c(Phi(I, I0, M)), the mask upsampled bilinearly."""
    pixels = F.interpolate(mask[None, None], size=picture.shape[-2:], mode="bilinear")[0]
    return model((baseline + pixels * (picture - baseline))[None]).softmax(-1)[0, 1]


def deletion(model, picture, baseline, mask):
    """The mean score on the way from the baseline to the masked image."""
    return sum(score(model, picture, baseline, k / POINTS * mask) for k in range(1, POINTS + 1)) / POINTS


def insertion(model, picture, baseline, mask):
    """The mean score on the way from the image to the image with only the masked part."""
    return sum(score(model, picture, baseline, 1 - k / POINTS * mask) for k in range(1, POINTS + 1)) / POINTS


def area(mask):
    return sum(1 - value for value in mask.flatten()) / mask.numel()


def total_variation(mask):
    down = sum(((mask[i + 1] - mask[i]) ** 2).sum() for i in range(len(mask) - 1))
    across = sum(((mask[:, j + 1] - mask[:, j]) ** 2).sum() for j in range(mask.shape[1] - 1))
    return (down + across) / mask.numel()


def bilateral(mask, picture):
    """exp(-|grad I|^2 / sigma^2) |grad M|^2 at the image's size, the image's squares averaged over channels."""
    pixels = F.interpolate(mask[None, None], size=picture.shape[-2:], mode="bilinear")[0, 0]
    down = torch.exp(-((picture[:, 1:] - picture[:, :-1]) ** 2).mean(0) / 0.01)
    across = torch.exp(-((picture[:, :, 1:] - picture[:, :, :-1]) ** 2).mean(0) / 0.01)
    rows, columns = pixels[1:] - pixels[:-1], pixels[:, 1:] - pixels[:, :-1]
    return ((down * rows**2).sum() + (across * columns**2).sum()) / pixels.numel()


def objective(method, model, picture, baseline, masks):
    """The papers' objectives, the integrated gradient written as the gradient of a mean over the path."""
    kept = masks.prod(0)
    smooth = (total_variation(kept) + bilateral(kept, picture)) / 2
    if method is IGOS:
        return deletion(model, picture, baseline, kept) + L1 * area(kept) + TV * total_variation(kept)
    both = deletion(model, picture, baseline, kept) - insertion(model, picture, baseline, kept)
    if method is IGOSPlus:
        return both + L1 * area(kept) + TV * smooth
    alone = deletion(model, picture, baseline, masks[0]) - insertion(model, picture, baseline, masks[1])
    return (both + alone) / 2 + L1 * area(kept) + TV * smooth


def transcribed(method, model, picture, baseline):
    """Gradient descent with backtracking from masks of ones, in float64."""
    masks = torch.ones(2 if method is IGOSPlusPlus else 1, SIZE, SIZE, dtype=torch.float64)
    for _ in range(STEPS):
        masks.requires_grad_()
        value = objective(method, model, picture, baseline, masks)
        (gradient,) = torch.autograd.grad(value, masks)
        masks, scale, length = masks.detach(), gradient.abs().max(), 1.0
        for _ in range(6):
            moved = (masks - length * gradient / scale).clamp(0, 1)
            if (
                objective(method, model, picture, baseline, moved)
                <= value - 1e-4 * length * (gradient**2).sum() / scale
            ):
                masks = moved
                break
            length *= 0.2
    return 1 - masks.prod(0)


@pytest.mark.parametrize("method", [IGOS, IGOSPlus, IGOSPlusPlus])
def test_the_published_method_is_its_paper(explained, method):
    picture = image(LEFT, RIGHT)
    baseline = torch.linspace(-0.5, 0.5, picture.shape[-1]).expand_as(picture).clone()
    model = LooksAtRegions(LEFT, gain=6.0)
    run = explained(model, method(mask_size=SIZE, noise=0.0).published(), picture, target=1, baseline=baseline)
    expected = transcribed(method, LooksAtRegions(LEFT, gain=6.0).double(), picture.double(), baseline.double())
    assert float(expected.max()) > 0.1
    torch.testing.assert_close(run.saliency.double(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", [IGOS, IGOSPlus, IGOSPlusPlus])
def test_the_protocol_is_the_preset(explained, method):
    picture = image(LEFT, RIGHT)
    asked = method(mask_size=SIZE, protocol="published", iterations=3, levels=9)
    assert asked.published().additions == PUBLISHED
    assert asked.published() == method(mask_size=SIZE).published()
    both = (asked, asked.published())
    by_name, by_preset = (explained(LooksAtRegions(LEFT), each, picture, target=1) for each in both)
    torch.testing.assert_close(by_name.saliency, by_preset.saliency, atol=1e-5, rtol=0)
    assert by_name.usage == by_preset.usage


@pytest.mark.parametrize("field", PUBLISHED.__dataclass_fields__)
def test_each_addition_can_be_left_out_alone(explained, field):
    ours = IGOSPlusPlus(mask_size=35, iterations=12)
    both = (ours, replace(ours, additions=Additions(**{field: False})))
    model = LooksAtRegions(LEFT, gain=2.0)
    first, second = (explained(model, each, image(LEFT), target=1) for each in both)
    same = torch.allclose(first.saliency, second.saliency, atol=1e-3)
    # The scale may be right as it is: then only its evaluations go.
    assert second.usage.evaluations < first.usage.evaluations if field == "best_scale" else not same
