"""The explainer beside a real KServe ModelServer, called by KServe's clients; scaled to zero and back."""

import base64
import contextlib
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import urllib3
from e2e_stack import wait_until
from known_models import LEFT, image
from kserve_support import await_ready, explainer, kserve_peer

MODEL_FILE = """
[[models]]
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }
"""


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
        arguments = ["--predictor_protocol", "v2", "--method", "occlusion", "--model_file", f"{directory}/model.toml"]
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
    return {"instances": [{"b64": encoded}], "parameters": {"target": "left", **parameters}}


def looks_left(heatmap) -> bool:
    """Returns whether the most salient part is where the model looks."""
    found = np.asarray(heatmap)
    top, left = np.unravel_index(found.argmax(), found.shape)
    return bool(max(top, left) < found.shape[0] / 2)


def test_the_v1_client_gets_the_explanation_of_the_predictor(peer, container, file):
    (found,) = peer.ask("explain", url=container.url, model="left", data=request(file))["explanations"]
    assert (found["state"], found["method"], found["target"]["label"]) == ("completed", "occlusion", "left")
    assert looks_left(found["heatmap"])


def test_the_v2_clients_get_it_from_an_inference(peer, container, file):
    parameters = {"target": 1, "curves": False}
    by_grpc = peer.ask("infer", url=f"127.0.0.1:{container.grpc}", model="left", image=str(file), parameters=parameters)
    by_rest = peer.ask("infer_rest", url=container.url, model="left", image=str(file))
    for found in (by_grpc, by_rest):
        assert (found["id"], found["model"]) == ("seven", "left")
        assert found["outputs"]["state"]["values"] == ["completed"]
        assert found["outputs"]["heatmap"]["shape"][0] == 1
    values, shape = (by_grpc["outputs"]["heatmap"][name] for name in ("values", "shape"))
    assert looks_left(np.reshape(values, shape[1:]))


def test_a_bare_image_comes_back_as_a_heatmap(container, file):
    headers = {"content-type": "image/png", "accept": "image/png"}
    asked = f"{container.url}/v1/models/left:explain?target=left"
    response = urllib3.request("POST", asked, body=file.read_bytes(), headers=headers)
    assert response.headers["content-type"] == "image/png"
    assert PIL.Image.open(io.BytesIO(response.data)).size == (56, 56)


def test_scaling_to_zero_and_back_loses_no_job(peer, container, start, file):
    """The last test of the container: it ends while a job runs, and another one finishes that job."""
    peer.ask("hold")
    asked = request(file, method="rise", method_parameters={"masks": 100}, curves=False, wait=0)
    (waiting,) = peer.ask("explain", url=container.url, model="left", data=asked)["explanations"]
    assert waiting["state"] in ("queued", "running")
    assert container.stop() == 0
    peer.ask("release")

    with start() as back:

        def ended() -> bool:
            again = {"instances": [waiting], "parameters": {"wait": 5}}
            (found,) = peer.ask("explain", url=back.url, model="left", data=again)["explanations"]
            assert found["job_id"] == waiting["job_id"]
            waiting.update(found)
            return found["state"] not in ("queued", "running")

        wait_until(ended, "the job ends")
    assert waiting["state"] == "completed"
    assert looks_left(waiting["heatmap"])
