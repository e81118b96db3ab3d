"""A model that runs elsewhere is explained as if it were here, and what goes wrong there is told."""

import gc
import threading
import time

import grpc
import numpy as np
import pytest
import torch
import trustme
from inference_server import FakeServer, Tensor, serving
from known_models import LEFT, RIGHT, image, looks_at_left

from sagittal.core.errors import Unavailable
from sagittal.core.models import ModelEntry
from sagittal.engine import Engine, EvaluationFailed, ModelUnreachable, Task
from sagittal.engine.requests import Evaluate, Subject
from sagittal.explain import EXPLAINERS, Needs, Question, explanation_steps
from sagittal.explain.events import SaliencyMask
from sagittal.models.loading import load
from sagittal.models.remote.client import InferenceClient, RetryBudget
from sagittal.models.remote.model import Form
from sagittal.models.sources import Access, ModelUnavailable, load_source
from sagittal.models.sources.access import Server
from sagittal.worker.execution.run import translate
from sagittal.worker.hosting.description import describe_model

CPU = torch.device("cpu")
PLAIN = {"input_size": 56, "fit": "squash", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def server():
    with serving(FakeServer(looks_at_left())) as server:
        yield server


def access(server, **settings):
    return Access(servers={"triton": Server(address=server.address, **settings)})


def source(**settings):
    return {"kind": "remote", "server": "triton", "model": "left"} | settings


def sourced(server, settings=None, /, **more):
    return load_source(source(**more), access(server, **(settings or {}))).module


def load_remote(server, settings=None, /, **more):
    entry = ModelEntry(name="left", source=source(**more), preprocessing=PLAIN, labels=["nothing", "left"])
    return load(entry, CPU, access=access(server, **(settings or {})))


def load_local():
    source = {"kind": "python", "factory": "known_models:looks_at_left"}
    return load(ModelEntry(name="left", source=source, preprocessing=PLAIN), CPU)


def images(count=5):
    return torch.rand(count, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def run(loaded, steps):
    events, ends = [], []
    engine = loaded.engine()
    engine.run(Task(steps=steps, on_event=events.append, on_end=ends.append))
    return events, ends[0]


def ask(loaded, rows=3):
    """Scores masks; returns the error, or None."""
    subject = Subject(images(1)[0], torch.zeros(3, 56, 56), 1)

    def steps():
        yield Evaluate(subject=subject, masks=torch.ones(rows, 4, 4))

    return run(loaded, steps())[1]


def test_the_deployed_model_answers_in_batches(server):
    module = sourced(server, max_batch=2)
    with torch.inference_mode():
        torch.testing.assert_close(module(images()), looks_at_left()(images()))
    assert sorted(request.inputs[0].shape[0] for request in server.asked) == [1, 2, 2]
    assert {request.outputs[0].name for request in server.asked} == {"scores"}


def test_an_explanation_is_the_one_of_the_same_model_here(server):
    def mask_of(loaded):
        explainer = EXPLAINERS["rise"].explainer(masks=100)
        events, error = run(loaded, explanation_steps(Question(image=image(LEFT, RIGHT), target=1), explainer))
        assert error is None
        return next(event.saliency for event in events if isinstance(event, SaliencyMask) and event.final)

    torch.testing.assert_close(mask_of(load_remote(server)), mask_of(load_local()))


def test_what_it_cannot_do_is_known_before_a_job_is_queued(server):
    loaded = load_remote(server)
    assert not loaded.found.supports_gradients
    assert loaded.found.spatial_layers == loaded.found.feature_layers == ()
    described = {method.name: method.unavailable for method in describe_model(loaded).methods}
    for row in EXPLAINERS.values():
        admitted = row.explainer.needs is Needs.NOTHING
        assert (described[row.name] == "") == admitted
        assert admitted or "these need neither: rise" in described[row.name]
    assert not any(
        described[name]
        for name in (
            "minimal-sufficient-explanations",
            "structured-attention-graph",
            "rise",
            "occlusion",
            "evaluate-mask",
        )
    )


@pytest.mark.parametrize("name", ["minimal-sufficient-explanations", "structured-attention-graph", "occlusion"])
def test_methods_without_gradients_find_the_reason(server, name):
    events, error = run(
        load_remote(server), explanation_steps(Question(image=image(LEFT), target=1), EXPLAINERS[name].explainer())
    )
    assert error is None
    assert events


@pytest.mark.parametrize(
    ("takes", "settings", "scale"),
    [
        pytest.param(Tensor(name="i", datatype="FP32", shape=[-1, 56, 56, 3]), {}, 1.0, id="channels last"),
        pytest.param(Tensor(name="i", datatype="FP16", shape=[-1, 3, 56, 56]), {}, 1.0, id="half precision"),
        pytest.param(Tensor(name="i", datatype="UINT8", shape=[-1, 56, 56, 3]), {}, 255.0, id="bytes"),
        pytest.param(Tensor(name="i", datatype="FP32", shape=[-1, 3, 56, 56]), {"scale": 2.0}, 2.0, id="scaled"),
        pytest.param(Tensor(name="i", datatype="FP32", shape=[4, 3, 56, 56]), {}, 1.0, id="a batch of four"),
        pytest.param(None, {"input": "i", "layout": "NHWC", "datatype": "FP16"}, 1.0, id="nothing told"),
    ],
)
def test_images_travel_as_the_server_takes_them(server, takes, settings, scale):
    server.takes, server.scale = ([takes] if takes else []), scale
    module = sourced(server, **settings)
    with torch.inference_mode():
        torch.testing.assert_close(module(images()), looks_at_left()(images()), atol=0.02, rtol=0.01)
    sent = server.asked[0].inputs[0]
    assert sent.name == "i"
    if takes is not None:
        assert sent.datatype == takes.datatype
        assert [a for a, b in zip(sent.shape, takes.shape, strict=True) if b > 0] == [b for b in takes.shape if b > 0]


def test_answers_as_numbers_are_read_too(server):
    def as_numbers(_request, response):
        values = np.frombuffer(response.raw_output_contents[0], "<f4")
        response.outputs[0].contents.fp32_contents.extend(values)
        del response.raw_output_contents[:]
        return response

    server.spoil = as_numbers
    with torch.inference_mode():
        torch.testing.assert_close(sourced(server)(images(2)), looks_at_left()(images(2)))


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        pytest.param({}, {"server": "other"}, "no server 'other'; .*SERVERS lists: triton", id="server"),
        pytest.param({}, {"address": "localhost:1"}, "source.address: Extra inputs", id="an address of one's own"),
        pytest.param({"ready": False}, {}, "its model left is not ready", id="not ready"),
        pytest.param({"takes": []}, {}, "does not report its inputs: give", id="no metadata"),
        pytest.param({}, {"input": "pixels"}, "has the inputs image: give one", id="input"),
        pytest.param({}, {"output": "logits"}, "has the outputs scores: give one", id="output"),
        pytest.param({"takes": [Tensor(name="a"), Tensor(name="b")]}, {}, "has the inputs a, b", id="two inputs"),
        pytest.param({"takes": [Tensor(name="a", shape=[-1, 9])]}, {}, "expected 4 dimensions", id="flat input"),
        pytest.param({"takes": [Tensor(name="a", datatype="BYTES")]}, {}, "takes BYTES", id="encoded pictures"),
    ],
)
def test_a_deployment_that_cannot_be_used_is_refused_when_it_is_loaded(server, change, settings, said):
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(ModelUnavailable, match=said):
        sourced(server, **settings)


def cut(_request, response):
    response.raw_output_contents[0] = response.raw_output_contents[0][:-2]
    return response


def fewer(_request, response):
    response.outputs[0].shape[0] += 1
    return response


def renamed(_request, response):
    response.outputs[0].name = "other"
    return response


def integers(_request, response):
    response.outputs[0].datatype = "INT64"
    return response


def replaced(_request, response):
    response.model_version = "8"
    return response


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(cut, "with an incomplete value", id="cut off"),
        pytest.param(fewer, r"of shape \(4, 2\) with 6 values for 3 images", id="too few"),
        pytest.param(renamed, "the outputs other; source.output is scores", id="another output"),
        pytest.param(integers, "as INT64; expected FP16, FP32, FP64", id="another type"),
        pytest.param(replaced, "version 8 answers now instead of 7: load the model again", id="another version"),
    ],
)
def test_an_answer_that_is_none_fails_the_job_and_not_the_engine(server, spoil, said):
    loaded = load_remote(server)
    server.spoil = spoil
    error = ask(loaded)
    assert isinstance(error, EvaluationFailed)
    with pytest.raises(EvaluationFailed, match=said):
        raise error
    server.spoil = lambda _request, response: response
    assert ask(loaded) is None


def test_a_passing_failure_is_not_seen(server):
    loaded = load_remote(server)
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        server.failures[:] = [code, code]
        assert ask(loaded) is None


@pytest.mark.parametrize("name", ["INVALID_ARGUMENT", "INTERNAL", "NOT_FOUND"])
def test_a_refusal_is_not_repeated(server, name):
    loaded, code = load_remote(server), grpc.StatusCode[name]
    server.failures[:] = [code]
    before = server.calls
    with pytest.raises(EvaluationFailed, match=f"server triton refused: {code.name}: a fault by construction"):
        raise ask(loaded)
    assert server.calls == before + 1


def test_a_server_in_trouble_gets_no_more_calls_than_the_budget_allows(server):
    client = InferenceClient("triton", Server(address=server.address, retry_budget=3, attempts=3), sleep=lambda _: None)
    server.failures[:] = [grpc.StatusCode.UNAVAILABLE] * 100
    request = server_request()
    for _ in range(10):
        with pytest.raises(ModelUnreachable, match="cannot be reached after"):
            client.infer(request)
    # The first call makes three attempts, which use up the budget; each after it makes one.
    assert server.calls == 3 + 9
    client.close()


def server_request():
    form = Form(name="image", datatype="FP32", channels_last=False, scale=1.0)
    return form.request(images(1).numpy(), model="left", version="", output="")


def test_successes_give_the_budget_back():
    budget = RetryBudget(2)
    assert [budget.fail() for _ in range(4)] == [True, True, False, False]
    for _ in range(11):
        budget.succeed()
    assert [budget.fail() for _ in range(2)] == [True, False]


def test_a_server_that_is_gone_fails_jobs_with_the_advice_to_try_again():
    with serving(FakeServer(looks_at_left())) as server:
        loaded = load_remote(server, {"attempts": 2})
    error = ask(loaded)
    assert isinstance(error, ModelUnreachable)
    told = translate(error)
    assert isinstance(told, Unavailable)
    assert told.retry_after
    assert "server triton cannot be reached after 2 attempts" in told.message
    with pytest.raises(ModelUnavailable, match="server triton cannot be reached"):
        sourced(server, {"attempts": 1})


def test_a_call_that_takes_too_long_is_given_up_once(server):
    loaded = load_remote(server, {"timeout": 0.5})
    server.seconds, before = 1.5, server.calls
    error = ask(loaded)
    assert isinstance(error, ModelUnreachable)
    assert "did not answer within 0.5 s" in str(error)
    assert server.calls == before + 1


def test_a_lost_server_is_not_asked_for_each_job_of_a_batch(server):
    loaded = load_remote(server, {"attempts": 1})
    engine = Engine(loaded.evaluator, batch_size=8)
    ends = []
    for _ in range(4):
        subject = Subject(images(1)[0], torch.zeros(3, 56, 56), 1)
        steps = iter([Evaluate(subject=subject, masks=torch.ones(1, 2, 2))])

        def generator(steps=steps):
            yield from steps

        engine.submit(Task(steps=generator(), on_end=ends.append))
    server.failures[:] = [grpc.StatusCode.UNAVAILABLE] * 100
    before = server.calls
    while engine.step():
        pass
    assert [type(error) for error in ends] == [ModelUnreachable] * 4
    assert server.calls == before + 1


def test_no_more_calls_are_in_flight_than_allowed(server):
    module = sourced(server, {"concurrency": 3}, max_batch=1)
    server.seconds = 0.05
    with torch.inference_mode():
        module(images(12))
    assert server.calls == 12
    assert 1 < server.most_at_once <= 3


def test_metadata_comes_from_settings_and_from_files_as_they_are_now(server, tmp_path):
    token = tmp_path / "token"
    token.write_text("Bearer old\n")
    module = sourced(server, {"metadata": {"x-team": "radiology"}, "metadata_files": {"authorization": token}})
    module(images(1))
    token.write_text("Bearer new\n")
    module(images(1))
    assert [call["authorization"] for call in server.metadata] == ["Bearer old", "Bearer new"]
    assert all(call["x-team"] == "radiology" for call in server.metadata)
    token.unlink()
    with pytest.raises(EvaluationFailed, match="the metadata of server triton cannot be read"):
        module(images(1))


@pytest.mark.parametrize("name", ["Authorization", "grpc-timeout"])
def test_metadata_with_a_name_that_grpc_refuses_is_refused_at_start(name):
    with pytest.raises(ValueError, match="is no metadata name"):
        Server(address="a:1", metadata={name: "x"})


def test_the_connection_is_encrypted_and_both_sides_are_known(tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    pair = (certificate.private_key_pem.bytes(), b"".join(part.bytes() for part in certificate.cert_chain_pems))
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    own = authority.issue_cert("worker.example.com")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    mutual = {
        "tls": True,
        "attempts": 1,
        "ca_file": tmp_path / "ca.pem",
        "certificate_file": tmp_path / "certificate.pem",
        "key_file": tmp_path / "key.pem",
    }
    with serving(FakeServer(looks_at_left()), credentials) as server:
        assert sourced(server, mutual)(images(1)).shape == (1, 2)
        for wrong in (mutual | {"ca_file": tmp_path / "stranger.pem"}, mutual | {"tls": False}):
            with pytest.raises(ModelUnavailable, match="cannot be reached"):
                sourced(server, wrong)
    with pytest.raises(ModelUnavailable, match=r"absent.pem of a model server cannot be read"):
        sourced(server, mutual | {"ca_file": tmp_path / "absent.pem"})


def test_the_digest_tells_deployments_apart(server):
    digest = load_remote(server).digest
    assert load_remote(server).digest == digest
    assert load_remote(server, version="2").digest != digest
    server.gives[0].shape[1] = 3
    assert load_remote(server).digest != digest


def test_a_model_that_goes_closes_its_connection(server):
    loaded = load_remote(server)
    assert ask(loaded) is None
    del loaded
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("ask-triton") for thread in threading.enumerate()):
        gc.collect()
        assert time.monotonic() < deadline
        time.sleep(0.05)
