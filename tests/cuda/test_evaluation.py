"""What a card evaluates is what a CPU evaluates."""

import subprocess
import sys
import threading
import types

import pytest
import torch
from prometheus_client import CollectorRegistry, Gauge
from torch import nn

from sagittal.core.models import ModelEntry
from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.engine.composition import NoiseTable, Part
from sagittal.engine.cuda.acceleration import CAPTURED, FUSED, REDUCED, accelerate, capture_passes, fuse_composition
from sagittal.engine.cuda.copies import upload
from sagittal.engine.cuda.graphs import Graphs
from sagittal.engine.cuda.precision import reduced_type, require_full_precision
from sagittal.engine.evaluator import bucket_sizes
from sagittal.engine.requests import Evaluate, Inspect, Subject, Upsampling
from sagittal.engine.scoring import Mode
from sagittal.explain import EXPLAINERS, Metrics, Question, explanation_steps
from sagittal.explain.events import Curve, SaliencyMask
from sagittal.models.loading import load
from sagittal.worker.devices import MIB, watch_memory

pytestmark = pytest.mark.cuda
only = pytest.mark.cuda_only

CPU = torch.device("cpu")
SHAPE = torch.Size((3, 64, 64))


class Network(nn.Module):
    """A small network of what networks consist of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.pool, self.flat, self.head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)

    def forward(self, inputs):
        return self.head(self.flat(self.pool(self.second(self.first(inputs)))))


def network(device=CPU, kind=Network):
    torch.manual_seed(0)
    made = kind().eval().requires_grad_(False)
    made.head.weight.mul_(20)
    return made.to(device)


@pytest.fixture(scope="module")
def loaded(device):
    """The network as a worker loads it, from an operator's file."""
    module = types.ModuleType("card_networks")
    module.network = network
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "card_networks", module)
        entry = ModelEntry(
            name="network",
            source={"kind": "python", "factory": "card_networks:network"},
            preprocessing={"input_size": 64, "fit": "squash"},
        )
        return load(entry, device)


@pytest.fixture
def evaluator(device):
    require_full_precision()
    return TorchEvaluator(module=network(device), device=device)


@pytest.fixture
def probe(device):
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3)).to(device)


def on_cpu():
    return TorchEvaluator(module=network(), device=CPU)


def whole(request):
    return [Part(request, 0, len(request.masks))]


def request_of(rows=6, cells=7, **options):
    generator = torch.Generator().manual_seed(1)
    image, baseline = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    subject = Subject(image, baseline, options.pop("target", 1))
    return Evaluate(subject=subject, masks=torch.rand(rows, cells, cells, generator=generator), **options)


def assert_close(scores, expected, *, atol=1e-4):
    assert scores.target.device.type == "cpu", "scores are on the host"
    torch.testing.assert_close(scores.target, expected.target, atol=atol, rtol=0)
    if expected.gradient is not None:
        scale = float(expected.gradient.abs().max())
        torch.testing.assert_close(scores.gradient.cpu(), expected.gradient, atol=10 * atol * scale, rtol=0)


# Composition, noise, upsampling, gradients.


@pytest.mark.parametrize("upsampling", list(Upsampling))
@pytest.mark.parametrize("cells", [1, 7, 28, 64])
def test_composition_and_gradients_are_those_of_a_cpu(evaluator, upsampling, cells):
    request = request_of(cells=cells, upsampling=upsampling, gradient=True, noise=0.2, noise_seed=5)
    assert_close(evaluator.evaluate(whole(request))[0], on_cpu().evaluate(whole(request))[0])


def test_masks_that_are_on_the_card_stay_there(evaluator, device):
    request = request_of(gradient=True)
    subject = Subject(request.subject.image.to(device), request.subject.baseline.to(device), 1)
    there = Evaluate(subject=subject, masks=request.masks.to(device), gradient=True)
    scores = evaluator.evaluate(whole(there))[0]
    assert scores.gradient.device.type == device.type
    assert_close(scores, on_cpu().evaluate(whole(request))[0])


def test_noise_is_the_same_on_every_device(device):
    here, there = (NoiseTable(each).rows([3, 4, 10**12], SHAPE) for each in (CPU, device))
    assert torch.equal(here, there.cpu())


def test_without_a_target_the_top_class_is_scored(evaluator):
    scores = evaluator.evaluate(whole(request_of(target=None)))[0]
    torch.testing.assert_close(scores.target, scores.top_score)
    assert_close(scores, on_cpu().evaluate(whole(request_of(target=None)))[0])


def test_composition_is_compiled_and_composes_the_same(evaluator, probe):
    step = fuse_composition(evaluator, probe)
    assert step.applied, step.detail
    for cells in (1, 7, 28, 64):
        request = request_of(cells=cells, gradient=True, noise=0.2)
        assert_close(evaluator.evaluate(whole(request))[0], on_cpu().evaluate(whole(request))[0])


@only
def test_an_image_is_copied_while_a_batch_runs(evaluator, device):
    image = torch.randn(SHAPE)
    launched = evaluator.launch(whole(request_of(rows=256, gradient=True)))
    assert torch.equal(upload(image, device).cpu(), image)
    assert launched.read()[0].finite


# Precision.


@only
def test_the_search_is_reduced_and_reported_scores_are_those_of_full_precision(evaluator, probe, device):
    steps = {step.name: step for step in accelerate(evaluator, probe, full_precision=False)}
    assert steps[REDUCED].applied, steps[REDUCED].detail
    assert evaluator.autocast is reduced_type(device)
    expected = on_cpu().evaluate(whole(request_of(gradient=True)))[0]
    exact, search = (evaluator.evaluate(whole(request_of(gradient=True, exact=exact)))[0] for exact in (True, False))
    assert_close(exact, expected)
    torch.testing.assert_close(search.target, expected.target, atol=0.01, rtol=0)
    assert not torch.equal(search.target, exact.target), "the search ran in full precision"
    cosine = torch.cosine_similarity(search.gradient.flatten().cpu(), expected.gradient.flatten(), dim=0)
    assert float(cosine) > 0.99


@only
def test_full_precision_is_not_rounded_to_ten_bits(device):
    require_full_precision()
    convolution, images = nn.Conv2d(64, 64, 3), torch.randn(8, 64, 32, 32)
    with torch.no_grad():
        expected = convolution.double()(images.double())
        found = convolution.float().to(device)(images.to(device)).cpu()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


# Determinism.


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_has_the_same_bits_each_time(loaded, gradient, exact):
    request = request_of(rows=16, gradient=gradient, exact=exact, noise=0.2)
    first, second = (loaded.evaluator.evaluate(whole(request))[0] for _ in range(2))
    assert torch.equal(first.target, second.target)
    if gradient:
        assert torch.equal(first.gradient, second.gradient)


# Graphs and buckets.


@only
def test_captured_passes_of_every_bucket_agree_with_launched_kernels(evaluator, probe):
    step = capture_passes(evaluator, probe, speedup=lambda *_: 1.0)
    assert step.applied, step.detail
    evaluator.buckets = bucket_sizes(16, 1.5)
    for gradient in (False, True):
        for rows in range(1, 25):
            request = request_of(rows=rows, gradient=gradient, target=rows % 10)
            assert_close(evaluator.evaluate(whole(request))[0], on_cpu().evaluate(whole(request))[0])
    assert len(evaluator.graphs) == 2 * len(evaluator.buckets)
    assert evaluator.graphs.bytes > 0


@only
def test_graphs_are_freed_and_captured_again(evaluator, device):
    evaluator.graphs = Graphs(evaluator.score, SHAPE, device, torch.contiguous_format)
    evaluator.buckets = (8, 64)
    for _ in range(3):
        for rows in (64, 8):
            assert_close(
                evaluator.evaluate(whole(request_of(rows=rows)))[0], on_cpu().evaluate(whole(request_of(rows=rows)))[0]
            )
        evaluator.graphs.clear()


class Waits(Network):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs if float(outputs.sum()) < 1e9 else -outputs


@only
def test_a_model_that_waits_for_the_device_is_not_captured_and_still_runs(device, probe):
    evaluator = TorchEvaluator(module=network(device, Waits), device=device)
    step = capture_passes(evaluator, probe)
    assert not step.applied
    assert evaluator.graphs is None
    assert_close(evaluator.evaluate(whole(request_of()))[0], on_cpu().evaluate(whole(request_of()))[0])


@only
def test_a_loaded_model_reports_what_runs_it(loaded):
    steps = {step.name: step for step in loaded.found.steps}
    for name in (REDUCED, FUSED, CAPTURED):
        assert steps[name].applied, steps[name].detail
    assert not set(steps) & {"fuse-activations", "fuse-additions", "freeze-convolutions", "steady-linear-layers"}
    assert loaded.evaluator.buckets[-1] >= loaded.found.batch_size
    assert loaded.engine().depth == 2
    assert all(not weights.requires_grad for weights in loaded.evaluator.module.parameters())
    request = request_of(gradient=True, exact=True)
    assert_close(loaded.evaluator.evaluate(whole(request))[0], on_cpu().evaluate(whole(request))[0], atol=1e-3)


def test_the_batch_size_is_one_of_those_that_were_tried(loaded):
    assert loaded.found.batch_size in (8, 16, 32, 64, 128, 256, 512)
    assert loaded.found.evaluations_per_second > loaded.found.gradient_evaluations_per_second > 0


# The engine.


def test_batches_beside_each_other_give_every_task_its_own_answer(loaded):
    answers = {}

    def steps(number):
        for turn in range(4):
            request = request_of(rows=5 + number, gradient=bool(turn % 2), target=number)
            answers[number, turn] = request, (yield request)

    engine = loaded.engine()
    tasks = [Task(steps=steps(number)) for number in range(6)]
    for task in tasks:
        engine.submit(task)
    while engine.step():
        pass
    assert all(task.ended for task in tasks)
    for request, scores in answers.values():
        torch.testing.assert_close(scores.target, on_cpu().evaluate(whole(request))[0].target, atol=0.01, rtol=0)
    assert engine.counters.busy > 0


def test_a_call_with_the_model_runs_between_batches(loaded, device):
    seen = []

    def steps():
        request = request_of()
        yield request
        call = lambda view: view.module(view.subject.image.to(device).unsqueeze(0)).argmax().item()  # noqa: E731
        seen.append((yield Inspect(subject=request.subject, call=call)))

    loaded.engine().run(Task(steps=steps()))
    assert seen == [int(network()(request_of().subject.image.unsqueeze(0)).argmax())]


class Greedy(Network):
    """Needs 32 MiB for each image."""

    def forward(self, inputs):
        room = torch.empty(len(inputs) * 32 * MIB, dtype=torch.uint8, device=inputs.device)
        return super().forward(inputs) + 0 * room[:1].float()


@only
def test_a_device_that_runs_out_of_memory_halves_the_batch_and_loses_nothing(device):
    evaluator = TorchEvaluator(module=network(device, Greedy), device=device)
    request, answers = request_of(rows=64), []

    def steps():
        answers.append((yield request))

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved(device) + 800 * MIB) / total, torch.cuda.current_device()
    )
    try:
        engine = Engine(evaluator, batch_size=64, depth=2)
        engine.run(Task(steps=steps()))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, torch.cuda.current_device())
    assert engine.counters.out_of_memory > 0
    assert engine.batch_size < 64
    torch.testing.assert_close(answers[0].target, on_cpu().evaluate(whole(request))[0].target, atol=1e-3, rtol=0)


LOST = """
import torch
from sagittal.engine import Engine, Task, TorchEvaluator
from sagittal.engine.requests import Evaluate, Subject
class Breaks(torch.nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1)[:, torch.full((2,), 10**6, device=inputs.device)]
device = torch.device("cuda")
image = torch.zeros(3, 8, 8)
request = Evaluate(subject=Subject(image, image, 0), masks=torch.ones(1, 1, 1))
engine = Engine(TorchEvaluator(module=Breaks(), device=device), depth=2)
engine.submit(Task(steps=iter([request]), on_end=lambda error: print("ended", error)))
try:
    while engine.step():
        pass
except torch.AcceleratorError:
    print("the step failed")
"""


@only
def test_a_device_that_is_lost_ends_the_process_and_not_the_job():
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False)
    assert "the step failed" in done.stdout, done.stderr[-2000:]
    assert "ended" not in done.stdout


@only
def test_the_memory_metric_is_that_of_the_card(device):
    gauge = Gauge("memory", "Memory.", ["device", "kind"], registry=CollectorRegistry())
    watch_memory(gauge, device)

    def read(kind):
        (family,) = gauge.collect()
        return next(sample.value for sample in family.samples if sample.labels["kind"] == kind)

    before = read("used")
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    assert read("total") == torch.cuda.mem_get_info(device)[1]
    assert read("used") - before >= 200 * MIB
    del held


# Every method.


SMALL = {
    "igos": {"iterations": 2},
    "igos+": {"iterations": 2},
    "igos++": {"iterations": 2},
    "meaningful-perturbation": {"iterations": 2},
    "rise": {"masks": 40},
    "score-cam": {"channels": 8},
    "integrated-gradients": {"steps": 4},
    "occlusion": {"grid": 14, "window": 7},
    "evaluate-mask": None,
    "concepts": None,
}


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if SMALL.get(name, {}) is not None])
def test_every_method_explains_on_the_card(name, loaded, device):
    image = upload(request_of().subject.image, device)
    question = Question(image=image, black=torch.zeros(3, 1, 1, device=device))
    explainer = EXPLAINERS[name].explainer(**SMALL.get(name, {}))
    events, ends = [], []
    task = Task(steps=explanation_steps(question, explainer, Metrics()), on_event=events.append, on_end=ends.append)
    loaded.engine().run(task)
    assert ends == [None]
    masks = [event for event in events if isinstance(event, SaliencyMask) and event.final]
    assert masks or name in ("minimal-sufficient-explanations", "structured-attention-graph")
    assert len([event for event in events if isinstance(event, Curve)]) == 2 * len(masks)


@only
def test_several_threads_use_the_card_while_passes_are_captured(evaluator, device):
    evaluator.graphs = Graphs(evaluator.score, SHAPE, device, torch.contiguous_format)
    evaluator.buckets = tuple(range(1, 17))
    stop, failures = threading.Event(), []

    def copy():
        try:
            while not stop.is_set():
                upload(torch.randn(SHAPE), device)
        except Exception as error:  # noqa: BLE001 - the test reports it
            failures.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        for rows in range(1, 17):
            evaluator.slot(rows, SHAPE, Mode(gradient=True, reduced=False))
    finally:
        stop.set()
        thread.join()
    assert failures == []
