"""KServe as others wrote it: a ModelServer that classifies, and KServe's clients, driven by lines of JSON on stdin.

Run with the peers' Python: `kserve_peer.py HTTP_PORT GRPC_PORT`. A line of stdin is {"do": NAME, ...}, and each answer
is one line of stdout, {"found": ...} or {"error": ...}.
"""

import asyncio
import json
import os
import re
import sys
import threading
from pathlib import Path

import numpy as np
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
)
from kserve import models as kserve_models
from kserve.inference_client import RESTConfig
from kubernetes.client import models as kubernetes_models

SIZE, LEFT, RIGHT, GAIN = 56, 8, 24, 10.0

#: Whether the model answers; otherwise its callers wait.
answering = threading.Event()
answering.set()

#: OpenAPI types that have no class.
PLAIN = {"str": str, "bool": bool, "int": int, "float": (int, float)}


class LooksLeft(Model):
    """Class 1 where there is a checkerboard on the left, as `known_models` has it."""

    def __init__(self, name):
        super().__init__(name)
        index = np.arange(SIZE)
        board = (index[None] + index[:, None]) % 2 * 2.0 - 1
        weight = np.zeros((SIZE, SIZE))
        weight[LEFT:RIGHT, LEFT:RIGHT] = board[LEFT:RIGHT, LEFT:RIGHT]
        self.weight = weight / np.abs(weight).sum()
        self.ready = True

    async def get_input_types(self):
        return [{"name": "images", "datatype": "FP32", "shape": [-1, 3, SIZE, SIZE]}]

    async def get_output_types(self):
        return [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}]

    def predict(self, payload, headers=None, response_headers=None):
        answering.wait()
        images = payload.inputs[0].as_numpy()
        found = (images.mean(1) * self.weight).sum((1, 2))
        scores = np.stack([np.zeros_like(found), GAIN * (found - 0.5)], 1).astype(np.float32)
        output = InferOutput("scores", list(scores.shape), "FP32")
        output.set_data_from_numpy(scores, binary_data=False)
        return InferResponse(payload.id or "", self.name, [output])


async def hold():
    """Makes callers of the model wait, until `release`."""
    answering.clear()


async def release():
    """Lets the model answer."""
    answering.set()


async def explain(url, model, data):
    """The V1 client's explain, once."""
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    return await client.explain(url, model_name=model, data=data)


async def ready(url, model):
    """What both clients report of the explainer's health."""
    first, second = (InferenceRESTClient(RESTConfig(protocol=protocol)) for protocol in ("v1", "v2"))
    return [
        await first.is_server_live(url),
        await first.is_model_ready(url, model),
        await second.is_server_live(url),
        await second.is_server_ready(url),
        await second.is_model_ready(url, model),
    ]


async def _until_it_ends(infer, model, image, parameters):
    """Calls with an image, and then with its job until that has ended; returns the last response."""
    name, value = "image", await asyncio.to_thread(Path(image).read_bytes)
    while True:
        given = InferInput(name, [1], "BYTES")
        given.set_data_from_numpy(np.array([value], object), binary_data=True)
        found = _told(await infer(InferRequest(model, [given], request_id="seven", parameters=parameters)))
        if found["outputs"]["state"]["values"][0] not in ("queued", "running"):
            return found
        name, value = "job_id", found["outputs"]["job_id"]["values"][0].encode()


def _told(response):
    found = {}
    for output in response.outputs:
        values = output.as_numpy()
        texts = [value.decode() if isinstance(value, bytes) else value for value in values.ravel().tolist()]
        found[output.name] = {"shape": list(values.shape), "values": texts}
    return {"id": response.id, "model": response.model_name, "outputs": found}


async def infer(url, model, image, parameters):
    """The gRPC client's infer."""
    client = InferenceGRPCClient(url)
    try:
        if not (await client.is_server_live(headers=()) and await client.is_model_ready(model, headers=())):
            raise RuntimeError("it is not ready")
        return await _until_it_ends(client.infer, model, image, parameters)
    finally:
        await client.close()


async def infer_rest(url, model, image, parameters):
    """The REST client's infer, which sends images as binary tensors."""
    client = InferenceRESTClient(RESTConfig(protocol="v2"))

    async def infer(request):
        return await client.infer(url, model_name=model, data=request)

    return await _until_it_ends(infer, model, image, parameters)


async def run(code, result):
    """Runs a program and returns the value of an expression after it."""
    return await asyncio.to_thread(_run, code, result)


def _run(code, result):
    names = {}
    exec(code, names)  # noqa: S102 - the documentation's own program
    return eval(result, names)  # noqa: S307


async def check(document):
    """Returns how a document violates the types of KServe's InferenceService, which are made from those of its CRD."""
    return list(_violations(document, "V1beta1InferenceService", "InferenceService"))


def _violations(value, kind, path):
    """Yields a text for each field that the type does not have, and each value of another type."""
    if kind in PLAIN:
        if not isinstance(value, PLAIN[kind]):
            yield f"{path}: {value!r} is no {kind}"
    elif kind.lower().startswith("list["):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for index, each in enumerate(value):
            yield from _violations(each, kind[5:-1], f"{path}[{index}]")
    elif kind.lower().startswith("dict"):  # dict(str, int), or Dict[str, int]
        for name, each in value.items():
            yield from _violations(each, kind[5:-1].partition(", ")[2], f"{path}.{name}")
    elif kind not in ("object", "datetime"):
        yield from _object_violations(value, kind, path)


def _object_violations(value, kind, path):
    plain = re.sub(r"^K8sIoApi[A-Za-z]*?(?=V1)", "", kind)
    known = getattr(kserve_models, kind, None) or getattr(kubernetes_models, plain, None)
    if known is None:
        if kind == "ResourceQuantity" or kind.endswith("IntOrString"):
            return
        yield f"{path}: the type {kind} is unknown"
        return
    fields = {json_name: known.openapi_types[name] for name, json_name in known.attribute_map.items()}
    for name, each in value.items():
        if name not in fields:
            yield f"{path}: {kind} has no field {name}"
        else:
            yield from _violations(each, fields[name], f"{path}.{name}")
    arguments = {name: value[told] for name, told in known.attribute_map.items() if told in value}
    try:
        known(**arguments)
    except ValueError as error:
        yield f"{path}: {error}"


def listen(answers):
    """Carries out the lines of stdin; ends the process with it."""
    for line in sys.stdin:
        command = json.loads(line)
        try:
            found = {"found": asyncio.run(globals()[command.pop("do")](**command))}
        except Exception as error:  # noqa: BLE001 - it is an answer
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    ports = [int(each) for each in sys.argv[1:3]]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # KServe logs to stdout
    threading.Thread(target=listen, args=(answers,), daemon=True).start()
    if ports[0]:
        ModelServer(http_port=ports[0], grpc_port=ports[1], enable_latency_logging=False).start(
            [LooksLeft("left"), LooksLeft("left-too")]
        )
    else:
        threading.Event().wait()
