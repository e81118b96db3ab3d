"""A worker follows the registry without a restart, and running jobs finish on what they began with."""

import sys
import threading
import types
from types import SimpleNamespace

import pytest
import torch
from embedded_queue import Registry
from prometheus_client import CollectorRegistry
from torch import nn

from sagittal.core.errors import Unavailable
from sagittal.core.models import ModelEntry, declaration_of
from sagittal.engine import Task
from sagittal.engine.requests import Evaluate, Subject
from sagittal.models.sources import Access
from sagittal.process.tracing import within
from sagittal.v1 import model_pb2
from sagittal.worker.execution.trace import load_span
from sagittal.worker.hosting import reconciler
from sagittal.worker.hosting.reconciler import Reconciler
from sagittal.worker.hosting.registry import Selection
from sagittal.worker.metrics import WorkerMetrics

NEVER = threading.Event()
READY, UNLOADED, FAILED = (
    model_pb2.MODEL_STATE_READY,
    model_pb2.MODEL_STATE_UNLOADED,
    model_pb2.MODEL_STATE_FAILED,
)
LISTED = Access(factories=("switch_networks:*",))


class Switch(nn.Module):
    """Says 0 or 1 of all images, as it was made."""

    broken = False

    def __init__(self, says=0) -> None:
        super().__init__()
        if type(self).broken:
            raise OSError("the disk with the weights is not mounted")
        self.weights = nn.Parameter(torch.tensor([0.0, 0.0]).index_fill(0, torch.tensor([says]), 4.0))

    def forward(self, images):
        return self.weights + 0.01 * images.mean((1, 2, 3)).unsqueeze(-1) * torch.tensor([1.0, -1.0])


@pytest.fixture(autouse=True)
def _networks(monkeypatch):
    torch.set_num_threads(1)
    module = types.ModuleType("switch_networks")
    module.Switch = Switch
    monkeypatch.setitem(sys.modules, "switch_networks", module)
    monkeypatch.setattr(Switch, "broken", False)


def declared(says=0, **fields):
    source = {"kind": "python", "factory": "switch_networks:Switch", "arguments": {"says": says}}
    preprocessing = {"input_size": 8, "fit": "squash"}
    return declaration_of(ModelEntry(**{"name": "switch", "source": source, "preprocessing": preprocessing, **fields}))


class Site:
    """A registry with one worker, whose loop is turned by hand."""

    def __init__(self, *, file=None, access=LISTED, **options):
        self.registry = Registry()
        self.metrics = CollectorRegistry()
        self.models = Reconciler(
            file,
            self.registry.workers,
            WorkerMetrics.create(self.metrics),
            worker="w",
            device=torch.device("cpu"),
            access=access,
            **options,
        )

    def register(self, says=0, **fields):
        self.registry.call(lambda models: models.register(declared(says, **fields)))
        self.turn()

    def update(self, says, **fields):
        self.registry.call(lambda models: models.update(declared(says, **fields)))
        self.turn()

    def wish(self, wish):
        self.registry.call(lambda models: models.wish("switch", "", wish))
        self.turn()

    def unregister(self, version):
        self.registry.call(lambda models: models.unregister("switch", version))

    def turn(self):
        """Turns until nothing is left to load."""
        while self.models.turn(batch_size=4, stopped=NEVER):
            pass

    def shown(self, version=""):
        return self.registry.call(lambda models: models.model("switch", version))

    def state(self, version=""):
        return self.shown(version).workers[0].state

    def hosted(self, version="1"):
        return self.models.get(("switch", version))


@pytest.fixture
def make_site():
    """Makes sites, and closes them at the end."""
    made = []

    def make(**options):
        made.append(Site(**options))
        return made[-1]

    yield make
    for site in made:
        site.registry.workers.close()


def start(hosted, seen):
    """Starts a job that asks again and again what the model says."""

    def steps():
        while True:
            request = Evaluate(subject=Subject(torch.ones(3, 8, 8), torch.ones(3, 8, 8), 0), masks=torch.ones(1, 2, 2))
            seen.append(float((yield request).target[0]))

    task = Task(steps=steps())
    hosted.engine.submit(task)
    return task


def test_a_model_that_waits_for_another_to_be_loaded_says_so(make_site, monkeypatch):
    site, seen, made = make_site(), [], Switch.__init__

    def shown():
        return [(worker.state, worker.message) for version in ("1", "2") for worker in site.shown(version).workers]

    def init(self, says=0):
        seen.append(shown())
        made(self, says)

    for version in ("1", "2"):
        site.registry.call(lambda models, version=version: models.register(declared(version=version)))
    monkeypatch.setattr(Switch, "__init__", init)
    site.turn()
    loading = model_pb2.MODEL_STATE_LOADING
    assert seen == [
        [(loading, ""), (UNLOADED, "waits until switch, version 1, is loaded")],
        [(READY, ""), (loading, "")],
    ]
    assert shown() == [(READY, ""), (READY, "")]


def test_a_model_registered_over_the_api_is_loaded_and_published_without_a_restart(make_site):
    site = make_site()
    site.turn()
    assert site.models.offered() == []
    site.register(labels=["off", "on"])
    shown = site.shown()
    assert (shown.workers[0].state, shown.workers[0].revision) == (READY, shown.revision)
    assert (shown.classes, list(shown.labels)) == (2, ["off", "on"])
    assert shown.workers[0].memory_bytes > 0
    assert all(check.passed for check in shown.checks)
    assert site.models.offered() == [("switch", "1")]


def test_running_jobs_finish_on_the_model_that_they_began_with(make_site):
    site = make_site()
    site.register(says=0)
    before, seen = site.hosted(), []
    digest = site.shown().digest
    task = start(before, seen)
    before.engine.step()
    site.update(says=1)
    after = site.hosted()
    assert after is not before
    assert site.shown().digest != digest
    assert before in site.models.running(), "its job goes on"
    before.engine.step()
    assert seen[0] == seen[1] > 0.9
    later = []
    start(after, later)
    after.engine.step()
    assert later[0] < 0.1
    task.cancel()
    before.engine.step()
    site.turn()
    assert before not in site.models.running()
    assert before.loaded is None, "its memory is free"


def test_an_unregistered_model_takes_no_more_jobs_and_goes_when_the_last_has_ended(make_site):
    site = make_site()
    site.register()
    hosted = site.hosted()
    task = start(hosted, [])
    hosted.engine.step()
    site.unregister("1")
    site.turn()
    assert site.hosted() is None
    assert site.models.offered() == []
    assert site.models.running() == [hosted]
    with site.models.pinned(hosted) as ready:
        assert not ready
    task.cancel()
    hosted.engine.step()
    site.turn()
    assert site.models.running() == []


def test_versions_that_come_and_go_leave_no_labels_behind(make_site):
    site = make_site()
    site.register(version="0")

    def shown():
        samples = [sample for metric in site.metrics.collect() for sample in metric.samples]
        return {(sample.name, *sample.labels.values()) for sample in samples if "version" in sample.labels}

    before = shown()
    assert ("sagittal_model_ready", "switch", "0") in before
    for version in map(str, range(1, 6)):
        site.register(version=version)
        assert len(shown()) == 2 * len(before)
        site.unregister(version)
        site.turn()
    assert shown() == before


def test_versions_are_served_side_by_side(make_site):
    site = make_site()
    site.register(says=0)
    site.register(says=1, version="2")
    assert site.models.offered() == [("switch", "1"), ("switch", "2")]
    assert site.state("1") == site.state("2") == READY


def test_a_model_on_demand_is_checked_at_registration_and_loaded_for_a_job(make_site):
    site = make_site()
    site.register(load="on-demand")
    assert site.state() == UNLOADED
    assert site.shown().methods, "so that requests can be checked"
    assert site.models.offered() == [("switch", "1")], "a job makes it come"
    site.models.want(site.hosted())
    site.turn()
    assert site.state() == READY
    site.turn()
    assert site.state() == READY


def test_load_and_unload_are_followed_and_a_job_brings_it_back(make_site):
    site = make_site()
    site.register()
    site.wish("unload")
    assert site.state() == UNLOADED
    site.models.want(site.hosted())
    site.turn()
    assert site.state() == READY
    site.wish("unload")
    site.wish("load")
    assert site.state() == READY


def test_a_model_with_a_job_is_unloaded_when_the_job_has_ended(make_site):
    site = make_site()
    site.register()
    task = start(site.hosted(), [])
    site.wish("unload")
    assert site.state() == READY
    task.cancel()
    site.hosted().engine.step()
    site.turn()
    assert site.state() == UNLOADED


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again_when_asked(make_site, monkeypatch):
    site = make_site()
    monkeypatch.setattr(Switch, "broken", True)
    site.register()
    assert site.state() == FAILED
    assert "the disk with the weights is not mounted" in site.shown().workers[0].message
    site.turn()
    assert site.hosted().hopeless
    assert site.models.offered() == [("switch", "1")], "its jobs are failed, not left to wait"
    monkeypatch.setattr(Switch, "broken", False)
    site.turn()
    assert site.state() == FAILED, "it is not tried again and again"
    site.wish("load")
    assert site.state() == READY
    assert not site.shown().workers[0].message


def test_jobs_are_left_to_a_worker_that_can_load_the_model(make_site, monkeypatch):
    site = make_site()
    monkeypatch.setattr(Switch, "broken", True)
    site.register()
    other = model_pb2.WorkerModel(state=READY)
    site.registry.workers.announce("other", [("switch", "1", other)], ttl=60)
    site.turn()
    assert not site.hosted().hopeless
    assert site.models.offered() == []


def test_only_functions_that_the_operator_listed_are_called_for_a_registration(make_site):
    site = make_site(access=Access())
    site.register()
    assert site.state() == FAILED
    assert "may not be called" in site.shown().workers[0].message


def test_the_registry_is_told_of_the_file_and_again_when_it_lost_its_data(make_site, tmp_path):
    path = tmp_path / "models.toml"
    path.write_text(
        '[[models]]\nname = "switch"\nsource = { kind = "python", factory = "switch_networks:Switch" }\n'
        'preprocessing = { input_size = 8, fit = "squash" }\n'
    )
    site = make_site(file=path, access=Access())
    site.turn()
    assert site.shown().origin == model_pb2.MODEL_ORIGIN_FILE
    hosted = site.hosted()
    site.registry.lose_everything()
    site.turn()
    assert site.hosted() is hosted, "nothing was loaded anew"
    assert site.shown().digest == hosted.loaded.digest


@pytest.mark.parametrize(
    ("selection", "served"),
    [
        ({}, ["1", "2"]),
        ({"names": ("switch@2",)}, ["2"]),
        ({"names": ("s*",)}, ["1", "2"]),
        ({"names": ("other",)}, []),
        ({"tags": {"tier": "gold"}}, ["2"]),
        ({"names": ("switch@1",), "tags": {"tier": "gold"}}, []),
    ],
)
def test_a_worker_serves_what_it_is_told_to(make_site, selection, served):
    site = make_site(selection=Selection(**selection))
    site.register()
    site.register(version="2", tags={"tier": "gold"})
    assert site.models.offered() == [("switch", version) for version in served]


def test_the_load_that_a_job_waits_for_is_a_span_of_that_jobs_trace(make_site):
    site, spans = make_site(), []
    job = SimpleNamespace(job_id="the job", model="switch", version="1")
    lease = SimpleNamespace(job=job, trace_context="its trace")
    site.register()
    site.wish("unload")

    class Loading:
        """A span that is told when it ends."""

        def end(self):
            spans.append(site.hosted().loaded is not None)

    class Spans:
        """A tracer that is told what begins."""

        def span(self, name, *, parent, attributes):
            spans.append((name, parent, attributes["sagittal.job.id"], attributes["sagittal.model"]))
            return Loading()

    site.models.want(site.hosted(), within=lambda: within(load_span(Spans(), lease)))
    site.turn()
    assert spans == [("load model", "its trace", "the job", "switch"), True]
    site.update(says=1)
    assert len(spans) == 2, "a load that no job asked for is in nobody's trace"


def test_a_change_that_could_not_be_read_is_read_at_the_next_turn(make_site, monkeypatch):
    def away(**_):
        raise Unavailable("the queue cannot be reached")

    monkeypatch.setattr(reconciler, "AWAY_PAUSE", 0.0)
    site = make_site()
    site.register()
    site.registry.call(lambda models: models.unregister("switch", "1"))
    with monkeypatch.context() as patched:
        patched.setattr(site.models._registry, "desired", away)
        site.models.turn(batch_size=4, stopped=NEVER, read=True)  # as after the notification
    assert site.hosted() is not None
    site.models.turn(batch_size=4, stopped=NEVER, read=False)
    assert site.hosted() is None
