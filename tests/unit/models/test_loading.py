"""What is found about a model when it is loaded is true."""

import sys
import time
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from sagittal.core.models import ModelEntry
from sagittal.engine import Task
from sagittal.engine.requests import Evaluate, Subject
from sagittal.models import evaluators, loading
from sagittal.models.checking import model_digest
from sagittal.models.loading import choose_device, load
from sagittal.models.row_equality import EQUAL_ROWS
from sagittal.models.sources import EVERYTHING, ModelUnavailable

CPU = torch.device("cpu")


class Tiny(nn.Module):
    """A network with a spatial and a flat layer, and faults on demand."""

    def __init__(self, seed=0, fault=""):
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(6, 5)
        self.fault = fault

    def forward(self, inputs):
        hidden = self.flat(self.pool(self.features(inputs)))
        if self.fault == "raise":
            raise ValueError("a fault by construction")
        if self.fault == "tuple":
            return (self.head(hidden),)
        return self.head(hidden).detach() if self.fault == "detached" else self.head(hidden)


@pytest.fixture
def tiny(monkeypatch):
    """Makes entries of Tiny, as an operator's file would name it."""
    module = types.ModuleType("tiny_networks")
    module.Tiny = Tiny
    monkeypatch.setitem(sys.modules, "tiny_networks", module)

    def entry(size=32, labels=(), mean=0.5, output="logits", **arguments):
        return ModelEntry(
            name="tiny",
            source={"kind": "python", "factory": "tiny_networks:Tiny", "arguments": arguments},
            preprocessing={"input_size": size, "fit": "squash", "mean": (mean, mean, mean)},
            labels=list(labels),
            output=output,
        )

    return entry


def test_classes_layers_and_gradients_are_found(tiny):
    loaded = load(tiny(), CPU)
    assert loaded.found.classes == 5
    assert loaded.found.supports_gradients
    assert loaded.found.spatial_layers == ("features.0", "features.1", "features.2", "features")
    assert loaded.found.feature_layers == ("pool", "flat")
    assert loaded.found.evaluations_per_second > 0
    assert loaded.found.gradient_evaluations_per_second > 0
    assert loaded.found.batch_size % loaded.evaluator.quantum == 0


def test_a_network_without_linear_layers_has_spatial_ones():
    pytest.importorskip("torchvision")
    source = {"kind": "torchvision", "model": "squeezenet1_1", "classes": 7}
    found = load(ModelEntry(name="a", source=source, preprocessing={"input_size": 64}), CPU).found
    assert found.classes == 7
    assert found.spatial_layers
    assert not found.feature_layers


def test_the_load_time_includes_measuring_the_memory_of_a_batch(tiny, monkeypatch):
    passed = []
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed))
    monkeypatch.setattr(loading, "time", clock)
    monkeypatch.setattr(loading, "batch_bytes", lambda *_: passed.append(10_000) or 1)
    assert load(tiny(), CPU).load_seconds > 9_000


def test_a_model_that_gives_no_gradients_is_found_out_and_still_scores(tiny):
    loaded = load(tiny(fault="detached"), CPU)
    assert not loaded.found.supports_gradients
    assert not loaded.evaluator.supports_gradients
    assert loaded.found.gradient_evaluations_per_second == 0
    assert loaded.found.evaluations_per_second > 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param({"fault": "raise"}, "fails on an input of 32x32 pixels", id="raises"),
        pytest.param({"fault": "tuple"}, "returns tuple; expected a tensor", id="returns a tuple"),
        pytest.param({"labels": ["one", "two"]}, "there are 2 for 5 classes", id="labels"),
    ],
)
def test_a_model_that_cannot_be_served_says_why(tiny, entry, said):
    with pytest.raises(ModelUnavailable, match=said):
        load(tiny(**entry), CPU)


def test_a_batch_size_that_is_given_is_taken_in_whole_quanta(tiny):
    loaded = load(tiny(), CPU, batch_size=24)
    assert loaded.found.batch_size == 24 - 24 % loaded.evaluator.quantum
    assert load(tiny(), CPU, batch_size=1).found.batch_size == 1


def test_the_digest_is_of_weights_and_preprocessing(tiny):
    def digest(**fields):
        entry = tiny(**fields)
        return model_digest(Tiny(fields.get("seed", 0)), entry)

    assert digest() == digest()
    different = [digest(), digest(seed=1), digest(size=48), digest(mean=0.4), digest(output="multi-label-logits")]
    assert len(set(different)) == len(different)


def test_the_digest_is_of_the_model_as_it_came_not_as_it_was_optimised(tiny):
    assert load(tiny(), CPU).digest == model_digest(Tiny(), tiny())


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ModelUnavailable, match="'cuda:99' does not exist"):
        choose_device("cuda:99")


@pytest.mark.parametrize("neighbours", [1, 7])
def test_a_jobs_result_does_not_depend_on_its_neighbours(tiny, neighbours):
    loaded = load(tiny(), CPU)
    generator = torch.Generator().manual_seed(0)
    subjects = [Subject(*torch.randn(2, 3, 32, 32, generator=generator), n % 5) for n in range(neighbours + 1)]

    def steps(number, seen):
        rows = torch.rand(2 + 3 * (number % 3), 7, 7, generator=torch.Generator().manual_seed(number))
        for turn in range(4):
            gradient = (number + turn) % 2 == 0
            request = Evaluate(
                subject=subjects[number], masks=rows, gradient=gradient, noise=0.2, noise_seed=100 * turn
            )
            seen.append((yield request))

    def results(numbers):
        engine = loaded.engine()
        seen = {number: [] for number in numbers}
        for number in numbers:
            engine.submit(Task(steps=steps(number, seen[number])))
        while engine.step():
            pass
        return seen[0]

    # What the program reported is what happens; a tolerance holds in any case.
    tolerance = 0 if loaded.found.equal_rows else 1e-4
    for alone, shared in zip(results([0]), results(range(neighbours + 1)), strict=True):
        torch.testing.assert_close(alone.target, shared.target, atol=tolerance, rtol=0)
        if alone.gradient is not None:
            torch.testing.assert_close(alone.gradient, shared.gradient, atol=tolerance, rtol=0)


def test_a_model_reports_whether_its_rows_are_equal_in_every_batch(tiny):
    found = load(tiny(), CPU).found
    (step,) = [each for each in found.steps if each.name == EQUAL_ROWS]
    assert step.applied == found.equal_rows
    assert ("equal to the last bit" if found.equal_rows else "to a tolerance, not to the last bit") in step.detail


def test_a_worker_that_starts_again_reads_the_batch_size_that_it_found(tiny, tmp_path, monkeypatch):
    # Which changes are kept is measured too, and what is kept belongs to them.
    monkeypatch.setattr(evaluators, "optimise", lambda module, *_, **__: (module, False, []))
    access = EVERYTHING.model_copy(update={"cache": tmp_path})
    first = load(tiny(), CPU, access=access)
    monkeypatch.setattr(evaluators, "_measured", lambda *_, **__: pytest.fail("it measured again"))
    again = load(tiny(), CPU, access=access)
    assert again.found == replace(first.found, checks=again.found.checks)
    assert (again.evaluator.quantum, again.evaluator.unit) == (first.evaluator.quantum, first.evaluator.unit)


def test_another_model_size_of_pictures_or_number_of_threads_is_measured_by_itself(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluators, "optimise", lambda module, *_, **__: (module, False, []))
    access = EVERYTHING.model_copy(update={"cache": tmp_path})
    for entry in (tiny(), tiny(seed=1), tiny(size=48)):
        load(entry, CPU, access=access)
    torch.set_num_threads(2)
    load(tiny(), CPU, access=access)
    assert len(list(tmp_path.iterdir())) == 4


def test_without_a_directory_of_its_own_nothing_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(tiny(), CPU)
    assert not list(tmp_path.iterdir())
