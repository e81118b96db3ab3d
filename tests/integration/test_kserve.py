"""The explainer beside a real KServe ModelServer, called by KServe's clients; scaled to zero and back."""

import base64
import contextlib
import io
import re
import shutil
from pathlib import Path

import kubernetes_validate
import numpy as np
import PIL.Image
import pytest
import torch
import urllib3
import yaml
from known_models import LEFT, RIGHT, image, looks_at_left
from kserve_support import STARTING, await_ready, explainer, kserve_peer
from peers_support import ROOT

from sagittal.core.models import ModelEntry
from sagittal.kserve.loading import model_table
from sagittal.kserve.settings import read_arguments
from sagittal.models.sources import Access, load_source
from sagittal.models.sources.access import Server

PAGE = ROOT / "docs" / "kserve.md"

MODEL_FILE = """
[[models]]
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }
"""


#: Seconds until a response, far below the time-out of KServe's clients.
WAIT = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("kserve")


@pytest.fixture(scope="module")
def peer(directory):
    with kserve_peer(directory / "peer.log") as found:
        yield found


@pytest.fixture(scope="module")
def start(directory, peer):
    """Starts the container with KServe's arguments; its state is on a volume."""
    (directory / "model.toml").write_text(MODEL_FILE)

    @contextlib.contextmanager
    def starting():
        arguments = ["--predictor_protocol", "v2", "--model_file", f"{directory}/model.toml"]
        arguments += ["--state", f"{directory}/state", "--model_name", "left"]
        arguments += ["--predictor_host", f"localhost:{peer.http}", "--workers", "4"]
        with explainer(directory / "explainer.log", arguments) as found:
            await_ready(peer, found, "left")
            yield found

    return starting


@pytest.fixture(scope="module")
def container(start):
    with start() as found:
        yield found


@pytest.fixture(scope="module")
def file(directory) -> Path:
    pixels = ((image(LEFT) + 1) / 2 * 255).round().byte().permute(1, 2, 0).numpy()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(directory / "left.png")
    return directory / "left.png"


def request(file, **parameters):
    encoded = base64.b64encode(file.read_bytes()).decode()
    return {"instances": [{"b64": encoded}], "parameters": {"target": "left", "wait": WAIT, **parameters}}


def explained(peer, url, model, data):
    """Returns the explanation of one image, asked for again until its job has ended."""
    while True:
        (found,) = peer.ask("explain", url=url, model=model, data=data)["explanations"]
        if found["state"] not in ("queued", "running"):
            return found
        data = {"instances": [found], "parameters": {"wait": WAIT}}


def looks_left(heatmap) -> bool:
    """Returns whether the most salient part is where the model looks."""
    found = np.asarray(heatmap)
    top, left = np.unravel_index(found.argmax(), found.shape)
    return bool(max(top, left) < found.shape[0] / 2)


def test_the_v1_client_gets_the_explanation_of_the_predictor(peer, container, file):
    found = explained(peer, container.url, "left", request(file))
    assert (found["state"], found["method"], found["target"]["label"]) == ("completed", "occlusion", "left")
    assert looks_left(found["heatmap"])


def test_the_v2_clients_get_it_from_an_inference(peer, container, file):
    asked = {"model": "left", "image": str(file), "parameters": {"target": 1, "curves": False, "wait": WAIT}}
    by_grpc = peer.ask("infer", url=f"127.0.0.1:{container.grpc}", **asked)
    by_rest = peer.ask("infer_rest", url=container.url, **asked)
    for found in (by_grpc, by_rest):
        assert (found["id"], found["model"]) == ("seven", "left")
        assert found["outputs"]["state"]["values"] == ["completed"]
        assert found["outputs"]["heatmap"]["shape"][0] == 1
    values, shape = (by_grpc["outputs"]["heatmap"][name] for name in ("values", "shape"))
    assert looks_left(np.reshape(values, shape[1:]))


def test_another_explainer_uses_the_sagittal_of_the_first(peer, container, directory, file):
    """It runs no process beside itself: it registers its predictor, which the worker's settings allow."""
    (address,) = re.findall(r"sagittal=(\S+)", container.log.read_text())
    (directory / "too.toml").write_text(MODEL_FILE)
    arguments = [
        "--model_name",
        "left-too",
        "--predictor_host",
        f"localhost:{peer.http}",
        "--sagittal_address",
        address,
    ]
    arguments += ["--model_file", f"{directory}/too.toml", "--method", "occlusion"]
    with explainer(directory / "other.log", arguments) as other:
        await_ready(peer, other, "left-too")
        found = explained(peer, other.url, "left-too", request(file))
        assert (found["state"], found["model"]) == ("completed", "left-too")
        assert looks_left(found["heatmap"])
        assert other.stop() == 0


def test_kserves_model_server_is_a_predictor_over_grpc_too(peer):
    access = Access(servers={"kserve": Server(address=f"127.0.0.1:{peer.grpc}")})
    model = load_source({"kind": "remote", "server": "kserve", "model": "left"}, access).module
    images = torch.stack([image(LEFT), image(RIGHT), image()])
    torch.testing.assert_close(model(images), looks_at_left()(images), atol=1e-4, rtol=1e-4)


def test_a_bare_image_comes_back_as_a_heatmap(container, file):
    headers = {"content-type": "image/png", "accept": "image/png"}
    asked = f"{container.url}/v1/models/left:explain?target=left"
    response = urllib3.request("POST", asked, body=file.read_bytes(), headers=headers, timeout=STARTING)
    while response.status == 202:  # the same request again gets the same answer
        response = urllib3.request("POST", asked, body=file.read_bytes(), headers=headers, timeout=STARTING)
    assert response.headers["content-type"] == "image/png", response.data
    assert PIL.Image.open(io.BytesIO(response.data)).size == (56, 56)


def test_the_programs_of_the_documentation_run(peer, container, file, directory):
    first, second = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(file, directory / "cat.jpg")
    places = {
        "http://cats.default.example.com": container.url,
        "cats-explainer.default:8081": f"127.0.0.1:{container.grpc}",
        'model_name="cats"': 'model_name="left"',
        'InferRequest("cats"': 'InferRequest("left"',
        "cat.jpg": str(directory / "cat.jpg"),
    }
    for written, here in places.items():
        assert written in first + second
        first, second = first.replace(written, here), second.replace(written, here)
    heatmap = peer.ask("run", code=first, result="heatmap")
    assert np.asarray(heatmap).ndim == 2
    path = str(directory / "cat.jpg")
    found = peer.ask("run", code=f"import asyncio\n{second}", result=f"sorted(asyncio.run(explain({path!r})))")
    assert found == ["explanation", "heatmap", "job_id", "overlay", "state"]


@pytest.mark.parametrize("name", ["inferenceservice.yaml", "shared-fleet.yaml"])
def test_kserve_and_kubernetes_take_the_examples(peer, tmp_path, name):
    service, *others = yaml.safe_load_all((ROOT / "examples" / "kserve" / name).read_text())
    assert peer.ask("check", document=service) == []
    told = service["spec"]["explainer"]
    extensions = {"minReplicas", "maxReplicas", "deploymentStrategy"}  # of KServe; the rest is a pod's
    pod = {name: value for name, value in told.items() if name not in extensions}
    for document in (*others, {"apiVersion": "v1", "kind": "Pod", "metadata": service["metadata"], "spec": pod}):
        kubernetes_validate.validate(document, "1.37", strict=True)
    (explaining,) = told["containers"]
    assert explaining["command"] == ["sagittal-kserve"]
    # what KServe adds
    added = ["--model_name", "cats", "--predictor_host", "cats-predictor.default", "--http_port", "8080"]
    settings = read_arguments([*explaining["args"], *added])
    for document in others:
        for file, text in document.get("data", {}).items():
            (tmp_path / file).write_text(text)
            table = model_table(settings.model_copy(update={"model_file": tmp_path / file}))
            ModelEntry.model_validate(table)


def test_a_field_that_kserve_does_not_have_would_be_found(peer):
    service = yaml.safe_load((ROOT / "examples" / "kserve" / "shared-fleet.yaml").read_text())
    service["spec"]["explainer"]["containers"][0]["arg"] = service["spec"]["explainer"].pop("minReplicas")
    service["spec"]["explainer"]["maxReplicas"] = "3"
    found = peer.ask("check", document=service)
    assert [text.partition(": ")[2] for text in found] == ["'3' is no int", "V1Container has no field arg"]


def test_scaling_to_zero_and_back_loses_no_job(peer, container, start, file):
    """The last test of the container: it ends while a job runs, and another one finishes that job."""
    peer.ask("hold")
    asked = request(file, method="rise", method_parameters={"masks": 100}, curves=False, wait=0)
    (waiting,) = peer.ask("explain", url=container.url, model="left", data=asked)["explanations"]
    assert waiting["state"] in ("queued", "running")
    assert container.stop() == 0
    peer.ask("release")

    with start() as back:
        found = explained(peer, back.url, "left", {"instances": [waiting], "parameters": {"wait": WAIT}})
    assert (found["job_id"], found["state"]) == (waiting["job_id"], "completed")
    assert looks_left(found["heatmap"])
