"""Models make room for each other, and none goes that has work."""

import sys
import threading
import types
from contextlib import closing

import pytest
import torch
from embedded_queue import own_settings
from prometheus_client import CollectorRegistry
from torch import nn

from sagittal.engine import Task
from sagittal.engine.requests import Evaluate, Subject
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import model_pb2
from sagittal.worker.hosting.model import Goal
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.metrics import WorkerMetrics

MIB = 2**20
NEVER = threading.Event()
STATES = {getattr(model_pb2, name): name for name in model_pb2.ModelState.keys()}  # noqa: SIM118 - no mapping


class Weighty(nn.Module):
    """Says the same of all images, with 2 MiB of weights."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2 * MIB // 4))

    def forward(self, inputs):
        return torch.tensor([0.0, 1.0]) + self.weights[:2] * inputs.mean((1, 2, 3)).unsqueeze(-1)


class Registry(RedisWorkerRegistry):
    """Keeps what a worker tells of its models."""

    def __init__(self):
        super().__init__(own_settings())
        self.published, self.announced = [], []

    def publish(self, model):
        self.published.append(model.name)
        return super().publish(model)

    def announce(self, worker, models, *, ttl):
        self.announced.append({name: STATES[state.state] for name, _, state in models})
        super().announce(worker, models, ttl=ttl)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def registry():
    registry = Registry()
    yield registry
    registry.close()


@pytest.fixture
def host(tmp_path, monkeypatch, registry):
    module = types.ModuleType("weighty_networks")
    module.Weighty = Weighty
    monkeypatch.setitem(sys.modules, "weighty_networks", module)

    def make(*names, copies):
        """Hosts the named models, loaded in this order, with room for so many of them."""
        source = '{ kind = "python", factory = "weighty_networks:Weighty" }'
        entries = [
            f'[[models]]\nname = "{name}"\nsource = {source}\npreprocessing = {{ input_size = 8, fit = "squash" }}\n'
            for name in names
        ]
        (tmp_path / "models.toml").write_text("\n".join(entries))
        metrics = WorkerMetrics.create(CollectorRegistry())
        device = torch.device("cpu")
        # A traced copy may stand beside each model, so the room is counted in what one takes.
        with closing(Registry()) as elsewhere:
            probe = Reconciler(tmp_path / "models.toml", elsewhere, metrics, worker="w", device=device)
            probe.load_all(batch_size=4, stopped=NEVER)
        each = probe.get((names[0], "1")).weights_bytes // MIB
        models = Reconciler(
            tmp_path / "models.toml",
            registry,
            metrics,
            worker="w",
            device=device,
            memory_mib=copies and copies * each + 1,
        )
        models.load_all(batch_size=4, stopped=NEVER)
        return models

    return make


def ready(models):
    return [hosted.entry.name for hosted in models.ready()]


def job():
    def steps():
        while True:
            yield Evaluate(subject=Subject(torch.zeros(3, 8, 8), torch.ones(3, 8, 8), 0), masks=torch.ones(1, 2, 2))

    return Task(steps=steps())


def start(models, name):
    hosted, task = models.get((name, "1")), job()
    with models.pinned(hosted) as loaded:
        assert loaded
        hosted.engine.submit(task)
    return task


def load(models, name):
    models.get((name, "1")).goal = Goal.LOADED
    models.load(models.get((name, "1")), batch_size=4, stopped=NEVER)


def test_without_a_bound_all_stay(host):
    models = host("a", "b", "c", copies=0)
    assert ready(models) == ["a", "b", "c"]


def test_the_least_recently_used_makes_room_and_stays_published(host, registry):
    models = host("a", "b", "c", copies=2)
    assert ready(models) == ["b", "c"]
    assert registry.published == ["a", "b", "c"]
    assert registry.announced[-1] == {
        "a": "MODEL_STATE_UNLOADED",
        "b": "MODEL_STATE_READY",
        "c": "MODEL_STATE_READY",
    }
    assert models.offered() == [("a", "1"), ("b", "1"), ("c", "1")], "a job for it makes it come back"


def test_use_counts_not_the_order_of_loading(host):
    models = host("a", "b", "c", copies=2)
    with models.pinned(models.get(("b", "1"))):
        pass
    load(models, "a")
    assert ready(models) == ["a", "b"]


def test_it_comes_back_as_it_was_and_is_published_once(host, registry):
    models = host("a", "b", copies=1)
    before = models.get(("a", "1")).described.digest
    load(models, "a")
    assert ready(models) == ["a"]
    assert models.get(("a", "1")).described.digest == before
    assert registry.published == ["a", "b"]
    assert {"a": "MODEL_STATE_LOADING", "b": "MODEL_STATE_UNLOADED"} in registry.announced


def test_a_model_with_a_running_job_is_never_unloaded(host):
    models = host("a", "b", "c", copies=2)
    tasks = [start(models, name) for name in ("b", "c")]
    assert models.offered() == [("b", "1"), ("c", "1")], "there is no room for a third"
    load(models, "a")
    assert ready(models) == ["b", "c"]
    for task in tasks:
        task.cancel()
        models.get(("b", "1")).engine.step()
        models.get(("c", "1")).engine.step()
    assert ("a", "1") in models.offered()
    load(models, "a")
    assert "a" in ready(models)


def test_a_model_to_which_a_job_is_being_handed_is_not_unloaded(host):
    models = host("a", "b", copies=1)
    with models.pinned(models.get(("b", "1"))) as loaded:
        assert loaded
        load(models, "a")
        assert ready(models) == ["b"]


def test_a_model_that_is_not_loaded_cannot_be_pinned(host):
    models = host("a", "b", copies=1)
    with models.pinned(models.get(("a", "1"))) as loaded:
        assert not loaded
    assert models.get(("a", "1")).pins == 0


def test_a_batch_size_that_memory_halved_is_remembered(host):
    models = host("a", "b", copies=1)
    models.get(("b", "1")).engine.batch_size = 2
    load(models, "a")
    load(models, "b")
    assert models.get(("b", "1")).engine.batch_size == 2


def test_a_model_larger_than_the_bound_still_runs_alone(host, monkeypatch):
    models = host("a", "b", copies=1)
    monkeypatch.setattr(models, "_bound", 1)
    load(models, "a")
    assert ready(models) == ["a"]
