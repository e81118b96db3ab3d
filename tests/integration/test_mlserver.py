"""A model on a real MLServer is explained over gRPC as if it were here."""

import json
import os
import shutil
import time

import pytest
import torch
from e2e_stack import free_port
from known_models import LEFT, RIGHT, image, looks_at_left
from peers_support import ROOT, program, running

from sagittal.core.errors import FailedPrecondition
from sagittal.core.methods import resolve
from sagittal.core.models import ModelEntry
from sagittal.engine import Task
from sagittal.engine.requests import Upsampling
from sagittal.explain import EXPLAINERS, Question, explanation_steps
from sagittal.explain.events import Curve, GraphNode, Prediction, RegionScores, SaliencyMask, SufficientSet
from sagittal.explain.problem import predict
from sagittal.explain.sets.regions import ask_regions
from sagittal.models.loading import load
from sagittal.models.sources import Access, ModelUnavailable, load_source
from sagittal.models.sources.access import Server
from sagittal.v1 import method_pb2
from sagittal.worker.hosting.description import describe_model

CPU = torch.device("cpu")
QUESTION = Question(image=image(LEFT, RIGHT), target=1)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Where an MLServer serves `looks-left` and `looks-left-last`, which takes channels last: over gRPC and HTTP."""
    command = program("mlserver")
    repository = tmp_path_factory.mktemp("mlserver") / "models"
    shutil.copytree(ROOT / "tests" / "peers" / "mlserver_repository", repository)
    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False} | ports
    (repository / "settings.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(repository / "looks_left")  # both are of its class
    with running(
        [command, "start", str(repository)],
        repository.parent / "log",
        port=ports["grpc_port"],
        cwd=repository.parent,
        env=environment,
    ):
        yield f"127.0.0.1:{ports['grpc_port']}", f"127.0.0.1:{ports['http_port']}"


@pytest.fixture(scope="module")
def address(places):
    return places[0]


def entry(**settings):
    source = {"kind": "remote", "server": "mlserver", "model": "looks-left"} | settings
    plain = {"input_size": 56, "fit": "squash", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return ModelEntry(name="left", source=source, preprocessing=plain, labels=["nothing", "left"])


@pytest.fixture(scope="module")
def remote(address):
    return when_ready(entry(), address)


def when_ready(registered, address):
    access = Access(servers={"mlserver": Server(address=address)})
    until = time.monotonic() + 60
    while True:
        try:
            return load(registered, CPU, access=access)
        except ModelUnavailable:
            # It listens before its models are loaded.
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.fixture(scope="module")
def local():
    source = {"kind": "python", "factory": "known_models:looks_at_left"}
    return load(entry().model_copy(update={"source": source}), CPU)


def run(loaded, steps):
    events, ends = [], []
    engine = loaded.engine()
    engine.run(Task(steps=steps, on_event=events.append, on_end=ends.append))
    if ends[0] is not None:
        raise ends[0]
    return events


def test_it_is_described_by_what_the_server_tells(remote):
    assert remote.found.classes == 2
    assert not remote.found.supports_gradients
    assert "calls looks-left on mlserver: images as FP32 NCHW" in remote.found.steps[0].detail


def test_its_scores_are_those_of_the_model_that_it_serves(remote):
    images = torch.stack([image(), image(LEFT), image(RIGHT), image(LEFT, RIGHT), image(LEFT)])
    with torch.inference_mode():
        torch.testing.assert_close(remote.evaluator.module(images), looks_at_left()(images), atol=1e-4, rtol=1e-4)


def test_its_scores_over_http_are_those_over_grpc(places, remote):
    access = Access(servers={"mlserver": Server(address=places[1], protocol="http")})
    by_http = load_source(entry(max_batch=2).source, access).module
    images = torch.stack([image(), image(LEFT), image(LEFT, RIGHT)])
    with torch.inference_mode():
        torch.testing.assert_close(by_http(images), remote.evaluator.module(images), atol=1e-4, rtol=1e-4)


def test_a_model_that_takes_channels_last_gets_them_and_says_the_same(address, remote):
    last = when_ready(entry(model="looks-left-last"), address)
    assert "calls looks-left-last on mlserver: images as FP32 NHWC" in last.found.steps[0].detail
    images = torch.stack([image(LEFT), image(RIGHT)])
    with torch.inference_mode():
        torch.testing.assert_close(last.evaluator.module(images), remote.evaluator.module(images))
    found, expected = (answers(model, "occlusion", {"grid": 4}) for model in (last, remote))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


HEATMAP = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))

WITHOUT_GRADIENTS = {
    "rise": {"masks": 64},
    "occlusion": {"grid": 7},
    "occlusion-surrogate": {"occlusions": 64},
    "minimal-sufficient-explanations": {"grid": 4},
    "structured-attention-graph": {"grid": 4},
    "evaluate-mask": {"heatmap": HEATMAP},
}
"""Every method that needs no gradients, with parameters that make it short."""


def answers(loaded, name, parameters):
    """Returns what is told of heatmaps, sets, nodes and curves, as tensors."""
    events = run(loaded, explanation_steps(QUESTION, EXPLAINERS[name].explainer(**parameters)))
    told = [event.saliency for event in events if isinstance(event, SaliencyMask) and event.final]
    told += [torch.tensor(event.patches) for event in events if isinstance(event, SufficientSet | GraphNode)]
    return told + [torch.tensor(event.scores) for event in events if isinstance(event, Curve)]


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_methods_and_curves_without_gradients_answer_as_they_do_here(remote, local, name):
    found, expected = (answers(model, name, WITHOUT_GRADIENTS[name]) for model in (remote, local))
    assert found
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_every_other_method_is_refused_before_a_job_is_queued_with_what_works(remote):
    described = describe_model(remote)
    assert {method.name for method in described.methods if not method.unavailable} == set(WITHOUT_GRADIENTS)
    for method in described.methods:
        if method.unavailable:
            asked = method_pb2.Method(custom=method_pb2.CustomMethod(name=method.name))
            if method.field != "custom":
                asked = method_pb2.Method()
                getattr(asked, method.field).SetInParent()
            with pytest.raises(FailedPrecondition, match="these need neither: " + ", ".join(WITHOUT_GRADIENTS)):
                resolve(asked, described.methods)


def test_predictions_and_regions_are_asked_of_it(remote):
    (prediction,) = [event for event in run(remote, predict(QUESTION.image, 2)) if isinstance(event, Prediction)]
    assert prediction.target.index == 1
    steps = ask_regions(QUESTION, 7, [(8,), tuple(range(49))], hide=True, upsampling=Upsampling.BOX)
    (regions,) = [event for event in run(remote, steps) if isinstance(event, RegionScores)]
    assert regions.scores[1] < regions.full.score


def test_a_model_that_the_server_has_not_is_refused(address, remote):
    with pytest.raises(ModelUnavailable, match=r"not ready|server mlserver refused"):
        load(entry(model="absent"), CPU, access=Access(servers={"mlserver": Server(address=address)}))
