"""What the engine evaluates is what the definition says."""

import known_models
import pytest
import torch
import torch.nn.functional as F

from sagittal.engine.composition import SUBJECTS_KEPT, Part
from sagittal.engine.evaluator import EvaluationFailed, Output, TorchEvaluator, bucket_sizes
from sagittal.engine.masking import compose, upsample
from sagittal.engine.requests import Evaluate, Subject, Upsampling

SIZES = (7, 28, 56)


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 27 * 27, 4)
    )
    return layers.eval().requires_grad_(False)


def evaluator_of(module, **options):
    return TorchEvaluator(module=module, device=torch.device("cpu"), **options)


def subject(target=1):
    torch.manual_seed(1)
    return Subject(torch.randn(3, 56, 56), torch.randn(3, 56, 56), target)


def whole(request):
    return [Part(request, 0, len(request.masks))]


@pytest.mark.parametrize("size", SIZES)
def test_gradient_equals_autograd_through_the_naive_composition(network, size):
    masks = torch.rand(5, size, size)
    request = Evaluate(subject=subject(), masks=masks, gradient=True)
    scores = evaluator_of(network).evaluate(whole(request))[0]

    leaf = masks.clone().requires_grad_()
    pixels = F.interpolate(leaf[:, None], size=(56, 56), mode="bilinear", align_corners=False)
    composed = request.subject.image * pixels + request.subject.baseline * (1 - pixels)
    expected = network(composed).softmax(-1)[:, 1]
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)

    torch.testing.assert_close(scores.target, expected.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.gradient, gradient, atol=1e-5, rtol=0)


@pytest.mark.parametrize("gradient", [False, True])
def test_batched_and_one_by_one_evaluations_agree(network, gradient):
    request = Evaluate(subject=subject(), masks=torch.rand(7, 28, 28), gradient=gradient, noise=0.2, noise_seed=3)
    evaluator = evaluator_of(network)
    together = evaluator.evaluate(whole(request))[0]
    apart = [evaluator.evaluate([Part(request, row, row + 1)])[0] for row in range(7)]
    torch.testing.assert_close(together.target, torch.cat([one.target for one in apart]), atol=1e-4, rtol=0)
    if gradient:
        torch.testing.assert_close(together.gradient, torch.cat([one.gradient for one in apart]), atol=1e-4, rtol=0)


def test_parts_of_different_jobs_share_a_batch_without_touching(network):
    first = Evaluate(subject=subject(0), masks=torch.rand(2, 7, 7), gradient=True)
    second = Evaluate(subject=subject(3), masks=torch.rand(3, 28, 28), gradient=True)
    evaluator = evaluator_of(network)
    shared = evaluator.evaluate(whole(first) + whole(second))
    for answer, request in zip(shared, (first, second), strict=True):
        alone = evaluator.evaluate(whole(request))[0]
        torch.testing.assert_close(answer.target, alone.target, atol=1e-6, rtol=0)
        torch.testing.assert_close(answer.gradient, alone.gradient, atol=1e-6, rtol=0)


def test_noise_is_the_same_for_a_seed_and_differs_between_rows(network):
    request = Evaluate(subject=subject(), masks=torch.ones(2, 7, 7), noise=1.0, noise_seed=5)
    evaluator = evaluator_of(network)
    first, again = (evaluator.evaluate(whole(request))[0].target for _ in range(2))
    assert torch.equal(first, again)
    assert first[0] != first[1]


def test_a_quantum_pads_the_batch_and_changes_no_score(network):
    request = Evaluate(subject=subject(), masks=torch.rand(3, 7, 7), gradient=True)
    plain, padded = (evaluator_of(network, quantum=quantum).evaluate(whole(request))[0] for quantum in (1, 4))
    torch.testing.assert_close(plain.target, padded.target)
    torch.testing.assert_close(plain.gradient, padded.gradient)


def test_a_compiled_model_sees_batches_of_its_sizes_only(network):
    sizes = []
    network.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    evaluator = evaluator_of(network, buckets=bucket_sizes(8, 1.5))
    plain = evaluator_of(network)
    for rows in range(1, 13):
        request = Evaluate(subject=subject(), masks=torch.rand(rows, 7, 7))
        scores = evaluator.evaluate(whole(request))[0].target
        torch.testing.assert_close(scores, plain.evaluate(whole(request))[0].target)
    assert set(sizes[::2]) == {1, 2, 4, 8, 12}


def test_without_a_target_the_top_class_is_scored(network):
    scores = evaluator_of(network).evaluate(whole(Evaluate(subject=subject(None), masks=torch.rand(4, 7, 7))))[0]
    torch.testing.assert_close(scores.target, scores.top_score)


def test_box_patches_are_exact_rectangles():
    class SumOfPixels(torch.nn.Module):
        def forward(self, inputs):
            return inputs[:, 0].flatten(1)

    mask = torch.zeros(1, 7, 7)
    mask[0, 2, 3] = 1
    ones, zeros = torch.ones(3, 56, 56), torch.zeros(3, 56, 56)
    request = Evaluate(subject=Subject(ones, zeros, 0), masks=mask, upsampling=Upsampling.BOX, probabilities=True)
    evaluator = evaluator_of(SumOfPixels(), output=Output.PROBABILITIES)
    shown = evaluator.evaluate(whole(request))[0].probabilities.view(56, 56)
    expected = torch.zeros(56, 56)
    expected[16:24, 24:32] = 1
    assert torch.equal(shown, expected)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        pytest.param(known_models.Faulty("shape"), {}, id="shape"),
        pytest.param(known_models.Constant(), {"classes": 3}, id="classes"),
    ],
)
def test_a_model_that_returns_no_scores_is_named(module, options):
    subject_of_fault = Subject(torch.full((3, 8, 8), 200.0), torch.zeros(3, 8, 8), 0)
    request = Evaluate(subject=subject_of_fault, masks=torch.ones(1, 2, 2))
    with pytest.raises(EvaluationFailed, match="the model returned"):
        evaluator_of(module, **options).evaluate(whole(request))


class EchoesPixels(torch.nn.Module):
    """Returns the input itself, so that whatever differs was differently composed."""

    def forward(self, inputs):
        return inputs.flatten(1)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("upsampling", list(Upsampling))
def test_rows_are_composed_alike_to_the_last_bit_however_they_are_cut(gradient, upsampling):
    masks = torch.rand(9, 5, 7)
    request = Evaluate(
        subject=subject(100),
        masks=masks,
        gradient=gradient,
        noise=0.3,
        noise_seed=11,
        upsampling=upsampling,
        probabilities=True,
    )
    evaluator = evaluator_of(EchoesPixels(), output=Output.PROBABILITIES)
    together = evaluator.evaluate(whole(request))[0]
    cuts = [(0, 1), (1, 3), (3, 9)]
    apart = [evaluator.evaluate([Part(request, *cut)])[0] for cut in cuts]
    assert torch.equal(together.probabilities, torch.cat([one.probabilities for one in apart]))
    if gradient:
        assert torch.equal(together.gradient, torch.cat([one.gradient for one in apart]))


@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradient_equals_autograd_for_every_upsampling_and_layout(network, upsampling, channels_last):
    masks = torch.rand(3, 7, 9)
    request = Evaluate(subject=subject(), masks=masks, gradient=True, upsampling=upsampling)
    scores = evaluator_of(network, channels_last=channels_last).evaluate(whole(request))[0]
    leaf = masks.clone().requires_grad_()
    composed = compose(request.subject.image, request.subject.baseline, upsample(leaf, (56, 56), upsampling))
    (expected,) = torch.autograd.grad(network(composed).softmax(-1)[:, 1].sum(), leaf)
    torch.testing.assert_close(scores.gradient, expected, atol=1e-5, rtol=0)


def test_a_subject_first_used_without_gradient_serves_with_gradient(network):
    one, evaluator = subject(), evaluator_of(network)
    masks = torch.rand(2, 7, 7)
    without = evaluator.evaluate(whole(Evaluate(subject=one, masks=masks)))[0]
    with_gradient = evaluator.evaluate(whole(Evaluate(subject=one, masks=masks, gradient=True)))[0]
    torch.testing.assert_close(without.target, with_gradient.target)


def test_subjects_are_kept_by_identity_and_not_for_ever(network):
    evaluator, mask = evaluator_of(network), torch.ones(1, 7, 7)
    shades = torch.linspace(-1, 1, SUBJECTS_KEPT + 5)
    for _ in range(2):
        for shade in shades:
            image = torch.full((3, 56, 56), float(shade))
            score = evaluator.evaluate(whole(Evaluate(subject=Subject(image, -image, 1), masks=mask)))[0].target
            torch.testing.assert_close(score, network(image[None]).softmax(-1)[:, 1], atol=1e-5, rtol=0)
    assert len(evaluator._composer._canvases) == SUBJECTS_KEPT
