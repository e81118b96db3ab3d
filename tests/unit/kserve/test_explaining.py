"""Jobs behind `:explain` and ModelInfer, before a service that follows a script."""

import asyncio
import base64
import json

import grpc
import numpy as np
import pytest
from scripted_service import JOB, SALIENCY, failure, whole_log

from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.kserve import open_inference as oip
from sagittal.kserve.loading import Loading
from sagittal.kserve.rpc import make_server
from sagittal.v1 import explanation_pb2, explanation_service_pb2, model_pb2

PNG = b"\x89PNG of the heatmap"
INSTANCE = base64.b64encode(b"\xff\xd8 an image").decode()


def let_run(script):
    """Lets the job run for as long as anyone watches it."""
    script.log = whole_log()[:4]
    script.hang_after = 4


async def test_an_image_is_explained_with_the_options_of_the_request(api):
    parameters = {"method": "occlusion", "target": "lamp", "seed": 5, "curves": False}
    response = await api.explain({"instances": [INSTANCE], "parameters": parameters})
    assert response.status == 200
    (found,) = response.document["explanations"]
    assert (found["job_id"], found["state"], found["method"]) == (JOB, "completed", "igos++")
    np.testing.assert_allclose(found["heatmap"], SALIENCY, atol=1e-3)
    (spec,) = api.script.specs
    assert spec.image.encoded == b"\xff\xd8 an image"
    assert (spec.model, spec.method.WhichOneof("method"), spec.target.label, spec.seed) == (
        "lamp",
        "occlusion",
        "lamp",
        5,
    )
    assert spec.metrics.skip_curves


async def test_a_request_that_names_no_method_gets_that_of_the_settings(api):
    await api.explain(b"\xff\xd8 bare", content_type="image/jpeg")
    assert api.script.specs[0].method.WhichOneof("method") == "rise"


async def test_a_job_that_takes_too_long_goes_on_and_its_id_asks_again(api):
    let_run(api.script)
    response = await api.explain({"instances": [INSTANCE], "parameters": {"wait": 0.05}})
    assert response.status == 202
    assert response.headers["retry-after"] == "1"
    (waiting,) = response.document["explanations"]
    assert waiting == {"job_id": JOB, "state": "running", "progress": 0.5}
    assert api.script.cancelled_jobs == []

    api.script.log, api.script.hang_after = whole_log(), 0
    again = await api.explain({"instances": response.document["explanations"]})
    assert again.status == 200
    assert again.document["explanations"][0]["state"] == "completed"
    assert len(api.script.specs) == 1, "the job was asked for, not submitted again"


async def test_a_caller_that_hangs_up_cancels_nothing(api):
    let_run(api.script)
    call = asyncio.create_task(api.explain({"instances": [INSTANCE]}))
    while not api.script.watched_after:  # noqa: ASYNC110 - the service is on another thread
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert api.script.cancelled_jobs == []


async def test_the_end_of_the_process_answers_those_who_wait(api):
    let_run(api.script)
    call = asyncio.create_task(api.explain({"instances": [INSTANCE]}))
    while not api.script.watched_after:  # noqa: ASYNC110 - the service is on another thread
        await asyncio.sleep(0.01)
    api.explainer.stop_waiting()
    assert (await call).document["explanations"][0]["job_id"] == JOB


async def test_an_image_is_returned_to_a_caller_that_accepts_images(api):
    api.script.images[explanation_service_pb2.JOB_IMAGE_OVERLAY] = PNG
    response = await api.explain(b"\xff\xd8 bare", content_type="image/jpeg", accept="image/png")
    assert (response.status, response.headers["content-type"], response.body) == (200, "image/png", PNG)
    let_run(api.script)
    response = await api.explain(b"\xff\xd8 bare", "?wait=0", content_type="image/jpeg", accept="image/png")
    assert (response.status, response.document["explanations"][0]["job_id"]) == (202, JOB)


async def test_a_method_without_a_heatmap_is_said_to_a_caller_that_accepts_images(api):
    api.script.log = [each for each in whole_log() if not each.HasField("mask")]
    for number, each in enumerate(api.script.log, start=1):
        each.sequence = number
    response = await api.explain(b"\xff\xd8 bare", content_type="image/jpeg", accept="image/png")
    assert response.status == 400
    assert "makes no heatmap" in response.document["error"]


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (400, failure(3, "INVALID_IMAGE", field="spec.image")),
        (404, failure(5, "UNKNOWN_MODEL")),
        (422, failure(9, "UNSUPPORTED")),
        (429, failure(8, "QUEUE_FULL", retry_after=0.4)),
        (403, failure(7, "PERMISSION_DENIED")),
        (500, failure(13, "INTERNAL")),
    ],
)
async def test_a_refusal_has_the_status_of_its_kind_in_kserves_form(api, status, refused):
    api.script.refuse = refused
    response = await api.explain({"instances": [INSTANCE]})
    assert response.status == status
    assert response.headers["content-type"] == "application/json"
    assert response.document["error"]
    if status == 400:
        assert response.document["error"].startswith("instances[0]")
    if status == 429:
        assert response.headers["retry-after"] == "1"


async def test_a_job_that_failed_is_an_error_with_its_id(api):
    failed = explanation_pb2.ExplanationEvent(job_id=JOB, sequence=3, failed=failure(14, "MODEL_AWAY", message="gone"))
    api.script.log = [*whole_log()[:2], failed]
    response = await api.explain({"instances": [INSTANCE]})
    assert (response.status, response.document["error"]) == (503, "gone")
    assert response.document["explanations"][0]["job_id"] == JOB


async def test_too_many_images_and_jobs_of_another_model_are_refused(api):
    response = await api.explain({"instances": [INSTANCE] * 5})
    assert (response.status, response.document["reason"]) == (400, "INVALID_REQUEST")
    api.loading.model = "other"
    response = await api.explain({"instances": [{"job_id": JOB}]})
    assert (response.status, response.document["reason"]) == (404, "UNKNOWN_JOB")


async def test_a_body_that_is_too_large_is_refused_as_it_arrives(api, monkeypatch):
    monkeypatch.setattr("sagittal.kserve.rest.MAX_BODY", 100)
    response = await api.explain(b"\xff\xd8" + bytes(100), content_type="image/jpeg")
    assert (response.status, response.document["reason"]) == (413, "MESSAGE_TOO_LARGE")
    assert api.script.specs == []


async def test_health_and_readiness_are_where_kserve_looks(api):
    paths = ("/", "/v1/models", "/v1/models/lamp", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/lamp",
             "/v2/models/lamp/ready")  # fmt: skip
    assert [(await api.call("GET", path)).status for path in paths] == [200] * 8
    assert (await api.call("GET", "/")).document == {"status": "alive"}
    assert (await api.call("GET", "/v1/models/lamp")).document == {"name": "lamp", "ready": True}
    assert (await api.call("GET", "/v1/models/lump")).status == 404
    assert (await api.call("POST", "/v1/models/lamp:predict", {})).status == 501


async def test_until_a_worker_has_the_model_it_is_not_ready_and_requests_wait(api):
    api.script.model = model_pb2.Model(name="lamp", version="1")
    await api.loading.look()
    statuses = [(await api.call("GET", f"/{path}")).status for path in ("v1/models/lamp", "v2/health/ready", "v2")]
    assert statuses == [503, 503, 200]
    response = await api.explain({"instances": [INSTANCE], "parameters": {"wait": 0}})
    assert (response.status, response.document["reason"]) == (503, "MODEL_NOT_READY")
    call = asyncio.create_task(api.explain({"instances": [INSTANCE]}))
    await asyncio.sleep(0)
    await api.get_ready()
    assert (await call).status == 200


async def test_workers_that_failed_to_load_the_model_are_asked_again(api):
    failed = model_pb2.WorkerModel(worker="w", state=model_pb2.MODEL_STATE_FAILED, message="the predictor is away")
    api.script.model = model_pb2.Model(name="lamp", version="1", workers=[failed])
    await api.loading.look()
    await api.loading.look()
    assert "the predictor is away" in api.loading.reason
    (asked,) = api.script.changes
    assert asked.name == "lamp"


async def test_a_model_that_a_job_failed_on_is_loaded_again_for_the_next(api):
    failed = explanation_pb2.ExplanationEvent(job_id=JOB, sequence=3, failed=failure(13, "MODEL_FAILED"))
    api.script.log = [*whole_log()[:2], failed]
    assert (await api.explain({"instances": [INSTANCE]})).status == 500
    (asked,) = api.script.changes
    assert (type(asked).__name__, asked.name) == ("UnloadModelRequest", "lamp")

    unloaded = model_pb2.WorkerModel(worker="w", state=model_pb2.MODEL_STATE_UNLOADED)
    api.script.model = model_pb2.Model(name="lamp", version="1", digest="d", workers=[unloaded])
    await api.loading.look()
    assert api.loading.ready, "the next job loads it"


@pytest.mark.parametrize(
    ("digest", "states", "ready"),
    [
        ("d", [], True),  # its workers are scaled to zero: a job brings them back
        ("", [], False),
        ("", ["LOADING"], False),
        ("d", ["LOADING"], True),
        ("d", ["FAILED"], False),
        ("d", ["FAILED", "UNLOADED"], True),
        ("", ["FAILED", "READY"], True),
    ],
)
async def test_a_model_is_ready_if_a_job_on_it_can_run_now_or_later(api, digest, states, ready):
    workers = [
        model_pb2.WorkerModel(worker=str(number), state=model_pb2.ModelState.Value(f"MODEL_STATE_{state}"))
        for number, state in enumerate(states)
    ]
    api.script.model = model_pb2.Model(name="lamp", version="1", digest=digest, workers=workers)
    await api.loading.look()
    assert api.loading.ready is ready


async def test_a_predictor_is_registered_and_a_changed_one_replaces_it(api):
    source = {"kind": "remote", "server": "kserve", "host": "a:80", "model": "m"}
    table = {"name": "lamp", "version": "1", "source": source}
    await Loading(api.client, table).look()
    (registered,) = api.script.changes
    assert registered.model.source.settings["host"] == "a:80"

    api.script.model_exists = True
    await Loading(api.client, table).look()
    assert type(api.script.changes[-1]).__name__ == "UpdateModelRequest"


@pytest.fixture
async def infer(api):
    """Calls ModelInfer with inputs and parameters."""
    server = make_server(api.explainer, api.loading, "lamp", max_calls=4)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

        async def infer(seconds=None, model="lamp", name="image", value=b"\xff\xd8", **parameters):
            request = pb.ModelInferRequest(model_name=model, id="7")
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            request.raw_input_contents.append(oip.pack([value]))
            for parameter, text in parameters.items():
                request.parameters[parameter].string_param = text
            response = await call(request, timeout=seconds)
            names = [each.name for each in response.outputs]
            return response, dict(zip(names, response.raw_output_contents, strict=True))

        yield infer
    await server.stop(0)


async def test_model_infer_explains(api, infer):
    api.script.images[explanation_service_pb2.JOB_IMAGE_OVERLAY] = PNG
    response, found = await infer(method="occlusion", overlay="64")
    assert (response.model_name, response.id) == ("lamp", "7")
    assert oip.unpack(found["job_id"], "") == [JOB.encode()]
    assert oip.unpack(found["overlay"], "") == [PNG]
    (text,) = oip.unpack(found["explanation"], "")
    assert json.loads(text)["target"]["label"] == "lamp"
    heatmap = np.frombuffer(found["heatmap"], "<f4").reshape(7, 7)
    np.testing.assert_allclose(heatmap, SALIENCY, atol=1e-3)
    assert api.script.specs[0].method.WhichOneof("method") == "occlusion"


async def test_a_deadline_returns_the_job_before_it_and_it_is_asked_for_again(api, infer, monkeypatch):
    let_run(api.script)
    monkeypatch.setattr("sagittal.kserve.rpc.MARGIN", 59.9)  # so that a slow machine has a minute after it
    _, found = await infer(seconds=60, wait="1000")
    assert oip.unpack(found["state"], "") == [b"running"]
    assert "heatmap" not in found
    api.script.log, api.script.hang_after = whole_log(), 0
    _, found = await infer(name="job_id", value=oip.unpack(found["job_id"], "")[0])
    assert oip.unpack(found["state"], "") == [b"completed"]


async def test_errors_of_model_infer_have_their_code(api, infer):
    for code, arguments in (
        (grpc.StatusCode.NOT_FOUND, {"model": "lump"}),
        (grpc.StatusCode.INVALID_ARGUMENT, {"name": "picture"}),
        (grpc.StatusCode.INVALID_ARGUMENT, {"methods": "rise"}),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await infer(**arguments)
        assert found.value.code() is code
