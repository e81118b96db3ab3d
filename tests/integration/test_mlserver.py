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
from sagittal.engine import Task
from sagittal.explain import EXPLAINERS, Question, explain
from sagittal.explain.preparation import predict
from sagittal.explain.regions import ask_regions
from sagittal.explain.seam import Prediction, RegionScores, SaliencyMask, SufficientSet, Upsampling
from sagittal.models.entry import ModelEntry
from sagittal.models.loading import load
from sagittal.models.sources import Access, ModelUnavailable
from sagittal.models.sources.access import Server
from sagittal.v1 import method_pb2
from sagittal.worker.catalogue import describe_model

CPU = torch.device("cpu")
QUESTION = Question(image=image(LEFT, RIGHT), target=1)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where an MLServer listens that serves `looks-left`."""
    command = program("mlserver")
    repository = tmp_path_factory.mktemp("mlserver") / "models"
    shutil.copytree(ROOT / "tests" / "peers" / "mlserver_repository", repository)
    ports = {"http_port": free_port(), "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False} | ports
    (repository / "settings.json").write_text(json.dumps(settings))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with running(
        [command, "start", str(repository)],
        repository.parent / "log",
        port=ports["grpc_port"],
        cwd=repository.parent,
        env=environment,
    ):
        yield f"127.0.0.1:{ports['grpc_port']}"


def entry(**settings):
    source = {"kind": "remote", "server": "mlserver", "model": "looks-left"} | settings
    plain = {"input_size": 56, "fit": "squash", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return ModelEntry(name="left", source=source, preprocessing=plain, labels=["nothing", "left"])


@pytest.fixture(scope="module")
def remote(address):
    access = Access(servers={"mlserver": Server(address=address)})
    until = time.monotonic() + 60
    while True:
        try:
            return load(entry(), CPU, access=access)
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
    assert "asks looks-left on mlserver: images as FP32 NCHW" in remote.found.steps[0].detail


def test_its_scores_are_those_of_the_model_that_it_serves(remote):
    images = torch.stack([image(), image(LEFT), image(RIGHT), image(LEFT, RIGHT), image(LEFT)])
    with torch.inference_mode():
        torch.testing.assert_close(remote.evaluator.module(images), looks_at_left()(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"), [("rise", {"masks": 64}), ("occlusion", {}), ("mse", {"grid": 7}), ("sag", {"grid": 7})]
)
def test_methods_without_gradients_answer_as_they_do_here(remote, local, name, parameters):
    def found(loaded):
        events = run(loaded, explain(QUESTION, EXPLAINERS[name].explainer(**parameters)))
        masks = [event.saliency for event in events if isinstance(event, SaliencyMask) and event.final]
        sets = [event.patches for event in events if isinstance(event, SufficientSet)]
        return masks, sets

    (masks, sets), (expected_masks, expected_sets) = found(remote), found(local)
    assert masks or sets
    assert sets == expected_sets
    for mask, expected in zip(masks, expected_masks, strict=True):
        torch.testing.assert_close(mask, expected, atol=1e-3, rtol=1e-3)


def test_predictions_and_regions_are_asked_of_it(remote):
    (prediction,) = [event for event in run(remote, predict(QUESTION.image, 2)) if isinstance(event, Prediction)]
    assert prediction.target.index == 1
    steps = ask_regions(QUESTION, 7, [(8,), tuple(range(49))], hide=True, upsampling=Upsampling.BOX)
    (regions,) = [event for event in run(remote, steps) if isinstance(event, RegionScores)]
    assert regions.scores[1] < regions.full.score


@pytest.mark.parametrize("field", ["igos", "igos_plus_plus", "grad_cam", "integrated_gradients"])
def test_methods_with_gradients_are_refused_before_a_job_is_queued(remote, field):
    method = method_pb2.Method()
    getattr(method, field).SetInParent()
    with pytest.raises(FailedPrecondition, match="these need neither: rise, occlusion, mse, sag, evaluate-mask"):
        resolve(method, describe_model(remote).methods)


def test_a_model_that_the_server_has_not_is_refused(address, remote):
    with pytest.raises(ModelUnavailable, match=r"not ready|server mlserver refused"):
        load(entry(model="absent"), CPU, access=Access(servers={"mlserver": Server(address=address)}))
