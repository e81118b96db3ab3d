"""A remote model over HTTP: JSON for servers without binary tensors, and errors as over gRPC."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
import torch
from known_models import looks_at_left

from sagittal.engine import EvaluationFailed, ModelUnreachable
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models import sources
from sagittal.models.remote.http_transport import HttpTransport
from sagittal.models.remote.transport import CallFailed
from sagittal.models.sources.access import Server


class Handler(BaseHTTPRequestHandler):
    """Serves `looks_at_left` in the protocol; `server.faults` are the statuses of the next inferences."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):  # noqa: A002 - the name in the base class
        """Logs nothing."""

    def do_GET(self):
        told = {"name": "left", "versions": None, "platform": "", "inputs": self.server.inputs, "outputs": []}
        documents = {
            "/v2": {"name": "fake", "extensions": self.server.extensions},
            "/v2/models/left": told,
            "/v2/models/left/ready": {"ready": True},
        }
        found = documents.get(self.path)
        self._answer(200 if found else 404, json.dumps(found or {"error": "no such model"}).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(dict(self.headers))
        if self.server.faults:
            self._answer(self.server.faults.pop(0), b'{"error": "a fault by construction"}')
            return
        size = int(self.headers.get("inference-header-content-length", len(body)))
        document, rest = json.loads(body[:size]), body[size:]
        (told,) = document["inputs"]
        values = np.frombuffer(rest, "<f4") if rest else np.array(told["data"], np.float32)
        with torch.inference_mode():
            images = torch.from_numpy(values.reshape(told["shape"]).copy())
            scores = looks_at_left()(images).numpy()
        output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
        if not rest:
            output["data"] = scores.ravel().tolist()
            self._answer(200, self.server.spoil(json.dumps({"model_name": "left", "outputs": [output]}).encode()))
            return
        output["parameters"] = {"binary_data_size": scores.nbytes}
        head = json.dumps({"model_name": "left", "model_version": "2", "outputs": [output]}).encode()
        self._answer(200, head + scores.tobytes(), {"inference-header-content-length": str(len(head))})

    def _answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(**settings):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    plain = {
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 56, 56]}],
        "extensions": [], "faults": [], "asked": [], "spoil": lambda body: body,
    }  # fmt: skip
    for name, value in (plain | settings).items():
        setattr(server, name, value)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sourced(server, model="left", **settings):
    address = f"127.0.0.1:{server.server_port}"
    told = Server(address="{host}", hosts=("127.0.0.1:*",), protocol="http", **settings)
    source = {"kind": "remote", "server": "kserve", "host": address, "model": model, "max_batch": 2}
    return sources.load_source(source, sources.Access(servers={"kserve": told})).module


@pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]])
def test_the_deployed_model_answers_in_json_or_binary_as_its_server_can(extensions):
    images = torch.rand(5, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with serving(extensions=extensions) as server, torch.inference_mode():
        torch.testing.assert_close(sourced(server)(images), looks_at_left()(images), atol=1e-5, rtol=1e-5)
        kinds = {headers["content-type"] for headers in server.asked}
    assert kinds == ({"application/octet-stream"} if extensions else {"application/json"})


def test_a_server_that_is_away_is_tried_again_and_one_that_refuses_is_not():
    with serving() as server:
        model = sourced(server, attempts=3)
        server.faults = [503, 502]
        assert model(torch.zeros(1, 3, 56, 56)).shape == (1, 2)
        server.faults = [503, 503, 503]
        with pytest.raises(ModelUnreachable, match=r"503: .*a fault by construction"):
            model(torch.zeros(1, 3, 56, 56))
        server.faults = [400]
        with pytest.raises(EvaluationFailed, match="refused: INVALID_ARGUMENT"):
            model(torch.zeros(1, 3, 56, 56))
        server.faults = [413]
        with pytest.raises(EvaluationFailed, match="lower max_batch"):
            model(torch.zeros(1, 3, 56, 56))


def test_a_server_that_refuses_connections_is_away_and_one_that_is_silent_too_late():
    asked = pb.ModelReadyRequest(name="left")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        transport = HttpTransport(Server(address=f"127.0.0.1:{held.getsockname()[1]}", protocol="http"))
        with pytest.raises(CallFailed) as found:
            transport.is_ready(asked, 60.0, ())
        assert found.value.code is grpc.StatusCode.UNAVAILABLE
        held.listen()
        with pytest.raises(CallFailed) as found:
            transport.is_ready(asked, 0.1, ())
        assert found.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        transport.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"model_name": "left", "outputs": [{"name": "scores"}]}'])
def test_a_malformed_response_is_an_error(body):
    with serving(spoil=lambda _: body) as server:
        model = sourced(server)
        with pytest.raises(EvaluationFailed, match=r"malformed|expected"):
            model(torch.zeros(1, 3, 56, 56))


def test_a_model_that_the_server_has_not_is_refused():
    with serving() as server, pytest.raises(sources.ModelUnavailable, match="not ready"):
        sourced(server, model="absent")


def test_a_host_that_the_operator_does_not_allow_is_refused():
    source = {"kind": "remote", "server": "kserve", "host": "127.0.0.1:1", "model": "left"}
    access = sources.Access(
        servers={"kserve": Server(address="{host}", hosts=("*-predictor.zoo:80",), protocol="http")}
    )
    with pytest.raises(sources.ModelUnavailable, match=r"source.host: .*is not among the server's hosts"):
        sources.load_source(source, access)
