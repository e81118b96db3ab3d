"""What runs on a card is chosen by checks, and the choices that need no card are made here."""

import pytest
import torch
from structlog.testing import capture_logs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.engine.composition import Composer, Part
from sagittal.engine.cuda.acceleration import (
    CAPTURED,
    FUSED,
    REDUCED,
    capture_passes,
    fuse_composition,
    reduce_precision,
)
from sagittal.engine.cuda.copies import upload
from sagittal.engine.cuda.fusing import Fused, compiled
from sagittal.engine.cuda.graphs import Graphs
from sagittal.engine.cuda.precision import reduced_copy
from sagittal.engine.evaluator import bucket_sizes
from sagittal.engine.requests import Evaluate, Subject, Upsampling
from sagittal.engine.scoring import TOP, Mode, pack
from sagittal.models.evaluators import _measured_as_run, suit_batches, variant_of

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 16, 16))


class Network(nn.Module):
    """A network with a norm between its weights."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, inputs):
        return 5 * self.head(self.norm(self.convolution(inputs)).relu().mean((-2, -1)))


@pytest.fixture
def probe():
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def evaluator_of(module=None, **options):
    torch.manual_seed(0)
    module = (Network() if module is None else module).eval().requires_grad_(False)
    return TorchEvaluator(module=module, device=CPU, **options)


def whole(request):
    return [Part(request, 0, len(request.masks))]


def request_of(rows=5, **options):
    torch.manual_seed(2)
    subject = Subject(torch.randn(SHAPE), torch.randn(SHAPE), options.pop("target", 1))
    return Evaluate(subject=subject, masks=torch.rand(rows, 7, 7), **options)


# Reduced precision.


def test_a_search_runs_in_reduced_precision_and_reported_scores_in_full(probe):
    evaluator, plain = evaluator_of(), evaluator_of()
    step = reduce_precision(evaluator, probe, torch.bfloat16)
    assert (step.name, step.applied) == (REDUCED, True)
    assert 0 < step.largest_difference <= 0.01
    seen = []
    for module in (evaluator.module, evaluator.reduced):
        module.convolution.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    search, exact = (evaluator.evaluate(whole(request_of(exact=exact)))[0] for exact in (False, True))
    assert seen == [torch.bfloat16, torch.float32]
    reference = plain.evaluate(whole(request_of()))[0]
    torch.testing.assert_close(exact.target, reference.target, atol=1e-6, rtol=0)
    torch.testing.assert_close(search.target, reference.target, atol=0.01, rtol=0)
    assert search.target.dtype is torch.float32


def test_weights_are_converted_once_and_norms_stay_in_full_precision():
    network = Network()
    reduced = reduced_copy(network, torch.bfloat16)
    assert {reduced.convolution.weight.dtype, reduced.head.bias.dtype} == {torch.bfloat16}
    assert {reduced.norm.running_mean.dtype, network.convolution.weight.dtype} == {torch.float32}


def test_gradients_in_reduced_precision_are_those_of_full_precision_to_its_rounding(probe):
    evaluator = evaluator_of()
    reduce_precision(evaluator, probe, torch.bfloat16)
    search, exact = (
        evaluator.evaluate(whole(request_of(gradient=True, exact=exact)))[0].gradient for exact in (False, True)
    )
    assert search.dtype is torch.float32
    assert float((search - exact).norm() / exact.norm()) < 0.25


class Drifts(Network):
    def forward(self, inputs):
        return super().forward(inputs) * (1 if self.head.weight.dtype is torch.float32 else 0.5)


def test_a_model_that_drifts_runs_in_full_precision_and_the_reason_is_logged(probe):
    evaluator = evaluator_of(Drifts())
    with capture_logs() as logs:
        step = reduce_precision(evaluator, probe, torch.bfloat16)
    assert not step.applied
    assert "changes a probability by" in step.detail
    assert "more than 0.01" in step.detail
    assert evaluator.autocast is evaluator.reduced is None
    assert [(each["event"], each["reason"]) for each in logs] == [("reduced-precision-refused", step.detail)]


class RefusesHalf(Network):
    def forward(self, inputs):
        if self.head.weight.dtype is not torch.float32:
            raise TypeError("by construction")
        return super().forward(inputs)


class Overflows(Network):
    """Its gradient is infinite where its weights are in reduced precision."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        if self.head.weight.dtype is not torch.float32:
            outputs = outputs + 0 * (inputs.mean((1, 2, 3)) * 0).sqrt().unsqueeze(1)
        return outputs


@pytest.mark.parametrize(
    ("network", "reason"), [(RefusesHalf, "TypeError: by construction"), (Overflows, "gradients are not finite")]
)
def test_a_model_that_fails_in_reduced_precision_runs_in_full(network, reason, probe):
    evaluator = evaluator_of(network())
    step = reduce_precision(evaluator, probe, torch.bfloat16)
    assert not step.applied
    assert reason in step.detail
    assert evaluator.evaluate(whole(request_of(gradient=True)))[0].finite


# Composition in one kernel.


@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cells", [(1, 1), (5, 7), (16, 24), (40, 30)])
def test_one_kernel_composes_like_matrix_products(upsampling, layout, cells):
    subject = Subject(torch.randn(3, 16, 24), torch.randn(3, 16, 24), 0)
    plain, fused = Composer(CPU, layout), Composer(CPU, layout, Fused(lambda function: function))
    for noise in (0.0, 0.3):
        request = Evaluate(
            subject=subject, masks=torch.rand(3, *cells), upsampling=upsampling, noise=noise, noise_seed=7
        )
        inputs, other = (torch.empty(3, 3, 16, 24).contiguous(memory_format=layout) for _ in range(2))
        composed, of_other = plain.compose(whole(request)[0], inputs), fused.compose(whole(request)[0], other)
        torch.testing.assert_close(inputs, other, atol=1e-5, rtol=0)
        along = torch.randn(3, 3, 16, 24)
        torch.testing.assert_close(composed.gradient(along), of_other.gradient(along), atol=1e-4, rtol=1e-4)


def test_composition_is_one_graph_for_any_number_and_size_of_masks(probe):
    graphs = []

    def compile_function(function):
        def backend(graph, _inputs):
            graphs.append(function.__name__)
            return graph.forward

        return compiled(function, fullgraph=True, backend=backend)

    composer = Composer(CPU, fused=Fused(compile_function))
    subject = Subject(probe[0], probe[1], 0)
    for rows, cells in ((3, 16), (5, 7), (16, 1)):
        request = Evaluate(subject=subject, masks=torch.rand(rows, cells, cells))
        with torch.no_grad():
            composed = composer.compose(whole(request)[0], torch.empty(20, *SHAPE)[:rows])
            composed.gradient(torch.randn(20, *SHAPE)[:rows])
    assert sorted(graphs) == ["_by_pixel", "_compose"]


def test_composition_that_cannot_be_compiled_stays_as_it_was(probe):
    def broken(_function):
        def fail(*_arguments):
            raise RuntimeError("no C compiler")

        return fail

    evaluator = evaluator_of()
    step = fuse_composition(evaluator, probe, Fused(broken))
    assert (step.name, step.applied) == (FUSED, False)
    assert "RuntimeError: no C compiler" in step.detail
    assert evaluator.composer.fused is None
    assert fuse_composition(evaluator, probe, Fused(lambda function: function)).applied
    assert evaluator.composer.fused is not None


def test_composition_that_differs_is_left_out(probe):
    fused = Fused(lambda function: function)
    fused.by_pixel = lambda of_inputs, difference: 2 * (of_inputs * difference).sum(1)
    assert "differs by" in fuse_composition(evaluator_of(), probe, fused).detail


# Captured passes.


class Captures:
    """Captures as CUDA does, as far as a CPU can: a replay reads the same memory and overwrites the same results."""

    def __init__(self):
        self.captured = self.replayed = self.begun = 0

    def begin(self, _device):
        self.begun += 1
        return self.capture

    def capture(self, work):
        self.captured += 1
        passed = work()

        def replay():
            self.replayed += 1
            again = work()
            for name in ("probabilities", "targets", "of_inputs"):
                if (kept := getattr(passed, name)) is not None:
                    with torch.inference_mode():
                        kept.copy_(getattr(again, name))

        return passed, replay


@pytest.fixture
def captures():
    return Captures()


def captured_evaluator(captures, batch_size=8, **options):
    evaluator = evaluator_of(**options)
    evaluator.graphs = Graphs(evaluator.score, SHAPE, CPU, torch.contiguous_format, begin=captures.begin)
    evaluator.buckets = bucket_sizes(batch_size, 1.5)
    return evaluator


def test_a_batch_of_every_size_runs_in_the_captured_pass_of_the_next_bucket(captures):
    evaluator, plain = captured_evaluator(captures), evaluator_of()
    for gradient in (False, True):
        for rows in range(1, 13):
            request = request_of(rows, gradient=gradient, target=None if rows % 2 else 2)
            mine, its = (each.evaluate(whole(request))[0] for each in (evaluator, plain))
            torch.testing.assert_close(mine.target, its.target, atol=1e-6, rtol=0)
            if gradient:
                torch.testing.assert_close(mine.gradient, its.gradient, atol=1e-6, rtol=1e-4)
    assert captures.captured == len(evaluator.graphs) == 2 * len(evaluator.buckets)
    assert captures.replayed == 24


def test_results_survive_the_next_batch_in_the_same_memory(captures):
    evaluator = captured_evaluator(captures)
    first, second = (request_of(4, gradient=True, target=target) for target in (0, 3))
    scores = evaluator.evaluate(whole(first))[0]
    kept = scores.target.clone(), scores.gradient.clone()
    evaluator.evaluate(whole(second))
    assert torch.equal(scores.target, kept[0])
    assert torch.equal(scores.gradient, kept[1])


def test_images_of_another_shape_are_not_captured(captures):
    evaluator = captured_evaluator(captures)
    subject = Subject(torch.randn(3, 20, 20), torch.randn(3, 20, 20), 0)
    evaluator.evaluate(whole(Evaluate(subject=subject, masks=torch.rand(2, 7, 7))))
    assert captures.captured == 0


def test_out_of_memory_frees_captured_passes(captures):
    evaluator = captured_evaluator(captures)
    evaluator.evaluate(whole(request_of(4)))

    def exhausted(*_):
        raise torch.cuda.OutOfMemoryError("by construction")

    handle = evaluator.module.register_forward_hook(exhausted)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        evaluator.evaluate(whole(request_of(4)))
    assert len(evaluator.graphs) == 0
    assert captures.begun == 2, "later captures have memory of their own"
    handle.remove()
    assert evaluator.evaluate(whole(request_of(4)))[0].finite


def test_a_model_is_captured_if_replays_agree_and_are_no_slower(captures, probe):
    evaluator = evaluator_of()
    step = capture_passes(evaluator, probe, begin=captures.begin, speedup=lambda *_: 1.5)
    assert (step.name, step.applied) == (CAPTURED, True)
    assert "1.50x as fast" in step.detail
    assert evaluator.graphs is not None
    assert len(evaluator.graphs) == 0, "sizes are captured when batches are chosen"
    slower = evaluator_of()
    assert (
        capture_passes(slower, probe, begin=captures.begin, speedup=lambda *_: 0.5).detail == "left out: 0.50x as fast"
    )
    assert slower.graphs is None


def test_a_model_that_cannot_be_captured_launches_each_kernel(probe):
    def begin(_device):
        def capture(_work):
            raise RuntimeError("operation not permitted when stream is capturing")

        return capture

    evaluator = evaluator_of()
    with capture_logs() as logs:
        step = capture_passes(evaluator, probe, begin=begin)
    assert "operation not permitted" in step.detail
    assert evaluator.graphs is None
    assert logs[0]["event"] == "cuda-graphs-refused"


def test_a_replay_that_does_not_read_its_inputs_is_left_out(probe):
    def begin(_device):
        return lambda work: (work(), lambda: None)

    step = capture_passes(evaluator_of(), probe, begin=begin, speedup=lambda *_: 2.0)
    assert not step.applied
    assert "replays change a probability by" in step.detail


def test_a_pass_scores_targets_and_top_classes_side_by_side(probe):
    evaluator = evaluator_of()
    passed = evaluator.score(probe, torch.tensor([0, TOP, 2, TOP]), Mode(gradient=False, reduced=False))
    expected = passed.probabilities
    torch.testing.assert_close(
        passed.targets, torch.stack([expected[0, 0], expected[1].max(), expected[2, 2], expected[3].max()])
    )


def test_only_input_gradients_are_computed(probe):
    evaluator = evaluator_of()
    evaluator.score(probe, torch.full((4,), TOP), Mode(gradient=True, reduced=False))
    assert all(weights.grad is None and not weights.requires_grad for weights in evaluator.module.parameters())


def test_an_image_on_its_device_is_not_copied():
    image = torch.zeros(3, 4, 4)
    assert upload(image, CPU) is image


def test_an_engine_and_captured_passes_answer_like_the_model(captures):
    evaluator, plain = captured_evaluator(captures, batch_size=4), evaluator_of()
    request = request_of(11, gradient=True)
    answers = []

    def steps():
        answers.append((yield request))

    engine = Engine(evaluator, batch_size=4, depth=2)
    engine.run(Task(steps=steps()))
    expected = plain.evaluate(whole(request))[0]
    torch.testing.assert_close(answers[0].target, expected.target, atol=1e-6, rtol=0)
    torch.testing.assert_close(answers[0].gradient, expected.gradient, atol=1e-6, rtol=1e-4)


class OnCard:
    """Tensors that claim to be on CUDA have shapes and devices, and no values: mixing devices is an error."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("upsampling", list(Upsampling))
def test_composition_on_a_card_mixes_no_devices(fused, upsampling, monkeypatch):
    card = torch.device("cuda")
    with OnCard(monkeypatch).mode:
        composer = Composer(card, torch.channels_last, Fused(lambda function: function) if fused else None)
        subject = Subject(torch.randn(SHAPE), torch.randn(SHAPE, device=card), 1)
        for masks in (torch.rand(2, 7, 7), torch.rand(2, 16, 16, device=card)):
            request = Evaluate(subject=subject, masks=masks, noise=0.1, upsampling=upsampling)
            inputs = torch.empty((2, *SHAPE), device=card, memory_format=torch.channels_last)
            gradient = composer.compose(whole(request)[0], inputs).gradient(torch.empty_like(inputs))
            assert (gradient.device.type, gradient.shape) == ("cuda", masks.shape)


def test_a_device_that_is_mixed_up_is_noticed(monkeypatch):
    with OnCard(monkeypatch).mode, pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2) + torch.zeros(2, device="cuda")


def test_a_pass_on_a_card_mixes_no_devices(monkeypatch):
    # Autograd and autocast need a card.
    card = torch.device("cuda")
    evaluator = evaluator_of()
    with OnCard(monkeypatch).mode:
        with card:
            evaluator.module = Network().eval().requires_grad_(False)
        evaluator.device = card
        inputs, targets = torch.randn((4, *SHAPE), device=card), torch.full((4,), TOP, device=card)
        passed = evaluator.score(inputs, targets, Mode(gradient=False, reduced=False))
        packed = pack(passed, 3, [None, torch.ones(2, 7, 7, device=card)], probabilities=True)
    assert (packed.device.type, packed.shape) == ("cuda", (3 * 3 + 2 + 3 * 4,))


# Batches of captured passes.


def test_batches_of_a_captured_model_have_few_sizes_that_are_captured_at_load(captures, probe):
    evaluator = evaluator_of(autocast=torch.bfloat16)
    evaluator.graphs = Graphs(evaluator.score, SHAPE, CPU, torch.contiguous_format, begin=captures.begin)
    plan = suit_batches(evaluator, probe, compiled=False, batch_size=4)
    assert evaluator.buckets == (1, 2, 4, 6)
    assert len(evaluator.graphs) == 4 * 4, "with and without gradient, reduced and full"
    assert not plan.equal_rows
    assert "captured separately" in plan.equality
    captured = captures.captured
    evaluator.evaluate(whole(request_of(3, gradient=True)))
    assert captures.captured == captured, "no job waits for a capture"


def test_the_batch_size_is_measured_on_passes_as_they_will_run(captures, probe):
    evaluator = evaluator_of(autocast=torch.bfloat16)
    evaluator.graphs = Graphs(evaluator.score, SHAPE, CPU, torch.contiguous_format, begin=captures.begin)
    throughput = _measured_as_run(evaluator, variant_of(evaluator), probe[:1], (2, 4))
    assert throughput.batch_size in (2, 4)
    assert captures.captured == 2 * 2, "the search's precision, with and without gradient"
    assert captures.replayed > captures.captured
    assert (evaluator.buckets, len(evaluator.graphs)) == ((), 0), "what was tried is freed"
