"""Mistakes that callers make, and what happens at the edges: an answer or an error of the SDK, and never a riddle."""

import pickle
import socket
import threading
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from scripted_service import JOB, event, failure

from sagittal.client import (
    TLS,
    AsyncClient,
    Baseline,
    Client,
    ConnectionFailed,
    Expired,
    FailedPrecondition,
    GradCAM,
    InvalidRequest,
    JobCancelled,
    Metrics,
    ModelFailed,
    ModelInput,
    Options,
    Overloaded,
    PatchSet,
    Retry,
    RobustnessTest,
    Table,
    Unavailable,
    UnknownModel,
)
from sagittal.client.options import MAX_MESSAGE_BYTES, full_address
from sagittal.server.settings import ConnectionSettings
from sagittal.v1 import model_pb2

# --- watching


def test_watching_after_the_last_event_of_a_job_that_ended_ends(client, script, job_id) -> None:
    with client.watch(job_id, after_sequence=15) as events:
        assert list(events) == []
    assert script.watched_after == [15, 15]


async def test_asynchronous_watching_after_the_last_event_ends_too(address, options, job_id) -> None:
    async with AsyncClient(address, options=options) as client:
        assert [each async for each in client.watch(job_id, after_sequence=15)] == []


def test_a_job_that_ends_between_two_calls_loses_no_event(client, script, job_id) -> None:
    whole, script.log = script.log, script.log[:14]
    seen = []
    with client.watch(job_id, after_sequence=12) as events:
        for each in events:
            seen.append(each.sequence)
            script.log = whole
    assert seen == [13, 14, 15]


def test_an_explanation_that_is_watched_from_its_middle_is_whole(client, job_id) -> None:
    explanation = client.watch(job_id, after_sequence=8).explanation()
    assert explanation.mask.shape == (7, 7)
    assert (explanation.state, explanation.model) == ("completed", "lamp")


def test_an_explanation_of_a_job_that_was_cancelled_raises_wherever_watching_began(client, script, job_id) -> None:
    script.log[3:] = [script.log[3]]
    script.log[3].cancelled.reason = "requested"
    with pytest.raises(JobCancelled):
        client.watch(job_id, after_sequence=4).explanation()


# --- batches


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, "8", True])
def test_a_batch_has_at_least_one_image_in_flight(client, picture, in_flight) -> None:
    with pytest.raises(InvalidRequest, match="at least 1") as caught:
        list(client.explain_many([picture], model="lamp", in_flight=in_flight))
    assert caught.value.field == "in_flight"


def test_images_that_the_service_has_no_room_for_wait_in_a_batch(client, script, picture) -> None:
    script.full = 5
    outcomes = list(client.explain_many([picture] * 4, model="lamp"))
    assert sorted(each.key for each in outcomes) == ["0", "1", "2", "3"]
    assert all(each.explanation is not None for each in outcomes)
    assert len(script.specs) == 9
    assert len({spec.request_id for spec in script.specs}) == 9


async def test_images_wait_in_an_asynchronous_batch_too(address, script, picture, options) -> None:
    script.full = 2
    async with AsyncClient(address, options=options) as client:
        outcomes = [each async for each in client.explain_many([picture] * 2, model="lamp")]
    assert [each.error for each in outcomes] == [None, None]


def test_a_batch_does_not_wait_for_room_for_ever(address, script, picture, options) -> None:
    script.full = 1_000
    short = replace(options, retry=replace(options.retry, stream_seconds=0.1))
    with Client(address, options=short) as client:
        (outcome,) = client.explain_many([picture], model="lamp")
    assert isinstance(outcome.error, Overloaded)


def test_a_batch_has_no_request_id_of_its_own(client, picture) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list(client.explain_many([picture], model="lamp", request_id="mine"))
    assert caught.value.field == "request_id"


def test_an_unknown_model_fails_the_batch_and_not_each_image(client, script, picture) -> None:
    script.refuse = failure(5, "UNKNOWN_MODEL")
    with pytest.raises(UnknownModel):
        list(client.explain_many([picture] * 3, model="lamp"))
    assert script.specs == []


def test_what_is_wrong_with_every_image_fails_the_batch(client, script, picture) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list(client.explain_many([picture], model="lamp", cache="never"))
    assert caught.value.field == "spec.cache_policy"
    assert script.specs == []


@pytest.mark.parametrize("images", ["cat.jpg", b"jpeg", np.zeros((3, 4, 5, 3), np.uint8), 5, None])
def test_one_image_is_not_many(client, images) -> None:
    with pytest.raises(InvalidRequest, match="expected several"):
        list(client.explain_many(images, model="lamp"))


# --- what is given


def test_one_state_stands_for_itself(client) -> None:
    assert [job.state for job in client.list(states="running")] == ["running"] * 4


@pytest.mark.parametrize("ask", [
    lambda client: client.concepts.fit("cats/", name="s", model="lamp", targets=[1]),
    lambda client: client.concepts.fit(["a.png"], name="s", model="lamp", targets="cat"),
    lambda client: client.update_model({"name": "lamp", "version": "1"}, fields="latest"),
    lambda client: client.score_regions(PatchSet(7, (1,)), job_id="job"),
])  # fmt: skip
def test_a_single_value_is_not_taken_apart(client, ask) -> None:
    with pytest.raises(InvalidRequest, match="expected several"):
        ask(client)


IMAGE = np.zeros((4, 5, 3), np.uint8)

MISTAKES = {
    "image": lambda client: client.explain("no-such.png", model="lamp"),
    "directory": lambda client: client.explain(Path("/"), model="lamp"),
    "input": lambda client: client.explain(ModelInput([1.0]), model="lamp"),
    "no model": lambda client: client.explain(IMAGE),
    "model": lambda client: client.explain(IMAGE, model=5),
    "model and method": lambda client: client.explain(IMAGE, model=5, method="igos++"),
    "version": lambda client: client.explain(IMAGE, model="lamp", model_version=1),
    "option": lambda client: client.explain(IMAGE, model="lamp", modle="x"),
    "method": lambda client: client.explain(IMAGE, model="lamp", method=5),
    "class": lambda client: client.explain(IMAGE, model="lamp", method=dict),
    "target": lambda client: client.explain(IMAGE, model="lamp", target=1.5),
    "negative target": lambda client: client.explain(IMAGE, model="lamp", target=-1),
    "baseline": lambda client: client.explain(IMAGE, model="lamp", baseline=5),
    "baseline's blur": lambda client: client.explain(IMAGE, model="lamp", baseline=Baseline(blur_sigma="wide")),
    "baseline's image": lambda client: client.explain(IMAGE, model="lamp", baseline=Baseline(kind="image", image="x")),
    "metrics": lambda client: client.explain(IMAGE, model="lamp", metrics=True),
    "boxes": lambda client: client.explain(IMAGE, model="lamp", metrics=Metrics(boxes=[(1, 2, 3, 4)])),
    "robustness": lambda client: client.explain(IMAGE, model="lamp", metrics=Metrics(robustness=True)),
    "draws": lambda client: client.explain(
        IMAGE, model="lamp", metrics=Metrics(robustness=RobustnessTest(max_draws=-1))
    ),
    "steps": lambda client: client.explain(IMAGE, model="lamp", metrics=Metrics(curve_steps=1.5)),
    "seed": lambda client: client.explain(IMAGE, model="lamp", seed="x"),
    "lane": lambda client: client.explain(IMAGE, model="lamp", lane=1),
    "deadline": lambda client: client.explain(IMAGE, model="lamp", deadline="10"),
    "endless deadline": lambda client: client.explain(IMAGE, model="lamp", deadline=float("inf")),
    "timeout": lambda client: client.explain(IMAGE, model="lamp", timeout=0),
    "request_id": lambda client: client.explain(IMAGE, model="lamp", request_id=7),
    "partial masks": lambda client: client.explain(IMAGE, model="lamp", partial_masks="no"),
    "detach": lambda client: client.stream(IMAGE, model="lamp", detach="yes"),
    "listener": lambda client: client.explain(IMAGE, model="lamp", on_event=5),
    "submit": lambda client: client.submit(None, model="lamp"),
    "job": lambda client: client.get(5),
    "watch": lambda client: client.watch("job", after_sequence=-1),
    "cancel": lambda client: client.cancel(5),
    "states": lambda client: list(client.list(states=5)),
    "state": lambda client: list(client.list(states=["asleep"])),
    "listed model": lambda client: list(client.list(model="lamp@1")),
    "named model": lambda client: client.model(5),
    "two versions": lambda client: client.model("lamp@1", version="2"),
    "table": lambda client: client.register_model("lamp"),
    "top": lambda client: client.predict(IMAGE, model="lamp", top="five"),
    "sets": lambda client: client.score_regions([(1, 2)], job_id="job"),
    "set's patches": lambda client: client.score_regions([PatchSet(7, ("a",))], job_id="job"),
    "regions' option": lambda client: client.score_regions([], job_id="job", hidden=True),
    "fit's option": lambda client: client.concepts.fit([], name="s", model="lamp", targets=[1], epoch=3),
    "fit's target": lambda client: client.concepts.fit([], name="s", model="lamp", targets=[1.5]),
    "fit's number": lambda client: client.concepts.fit([], name="s", model="lamp", targets=[1], epochs="many"),
    "set": lambda client: client.concepts.get(5, model="lamp"),
    "set's model": lambda client: client.concepts.get("s", model="lamp@1"),
    "listed set's model": lambda client: list(client.concepts.list(5)),
    "deleted set": lambda client: client.concepts.delete(None, model="lamp"),
    "updated set": lambda client: client.concepts.update(5, model="lamp"),
    "set's names": lambda client: client.concepts.update("s", model="lamp", rename=["eye"]),
    "set's name": lambda client: client.concepts.update("s", model="lamp", rename={1: 5}),
    "x-feature": lambda client: client.concepts.update("s", model="lamp", merge={"eye": 1}),
    "image's kind": lambda client: client.image("job", ["thumbnail"]),
    "no place": lambda client: client.watch("job", after_sequence=None),
    "updated field": lambda client: client.update_model({"name": "lamp", "version": "1"}, fields=[5]),
    "wait": lambda client: client.wait_until_ready(timeout="1"),
    "mask": lambda client: client.get("job").with_image(IMAGE[:, :4]).overlay("heatmap"),
    "heatmap": lambda client: client.get("job").with_image(IMAGE[:, :4]).overlay(np.zeros(3, np.float32)),
    "longest": lambda client: client.get("job").with_image(IMAGE[:, :4]).overlay(longest="20"),
    "mask on image": lambda client: client.get("job").with_image(IMAGE[:, :4]).saliency_on_image(None),
    "shape": lambda client: client.get("job").with_image(IMAGE[:, :4]).saliency_on_image(shape=20),
    "labels": lambda client: client.submit(IMAGE, model="lamp", labels=np.zeros(3)),
    "preprocessing": lambda client: client.get("job").with_image(IMAGE, preprocessing="squash"),
    "rows": lambda _client: Table(5),
    "fit's deadline": lambda client: client.concepts.fit([], name="s", model="lamp", targets=[1], deadline="1"),
}  # fmt: skip


SETTINGS = {
    "options": lambda: Client(options={"timeout": 3}),
    "tls": lambda: Client(tls=True),
    "address": lambda: Client(5),
    "options.timeout": lambda: Options(timeout="3"),
    "options.max_message_bytes": lambda: Options(max_message_bytes=0),
    "options.retry": lambda: Options(retry=3),
    "retry.call_seconds": lambda: Retry(call_seconds=-1),
}


@pytest.mark.parametrize("field", SETTINGS)
def test_a_setting_that_cannot_be_is_named(field) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SETTINGS[field]()
    assert caught.value.field == field


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_invalid_request_that_names_its_field(client, script, mistake) -> None:
    with pytest.raises(InvalidRequest) as caught:
        MISTAKES[mistake](client)
    assert caught.value.field
    assert script.specs == script.fits == []


def test_the_class_of_a_method_stands_for_its_defaults(client, script) -> None:
    client.submit(IMAGE, model="lamp", method=GradCAM)
    assert script.specs[0].method.WhichOneof("method") == "grad_cam"


def test_a_model_is_known_by_the_name_that_lists_print(client, script) -> None:
    client.submit(IMAGE, model="lamp@2")
    client.explain(IMAGE, model="lamp@2", model_version="2")
    assert [(spec.model, spec.model_version) for spec in script.specs] == [("lamp", "2")] * 2
    client.load_model("lamp@2")
    assert (script.changes[-1].name, script.changes[-1].version) == ("lamp", "2")


def test_a_method_that_only_workers_know_is_asked_for_again_once_one_has_loaded_the_model(client, script) -> None:
    with pytest.raises(FailedPrecondition, match="no worker has loaded the model") as caught:
        client.submit(IMAGE, model="lamp", method="of-a-worker")
    assert caught.value.retry_after


def test_a_closed_client_says_so(address, options, job_id) -> None:
    client = Client(address, options=options)
    client.close()
    with pytest.raises(ConnectionFailed, match="closed"):
        client.get(job_id)
    with pytest.raises(ConnectionFailed, match="closed"):
        list(client.watch(job_id))
    with pytest.raises(ConnectionFailed, match="closed"):
        list(client.explain_many([IMAGE], model="lamp"))


@pytest.mark.parametrize(("tls", "field"), [
    (TLS(root_certificates="no-such.pem"), "tls.root_certificates"),
    (TLS(certificate=__file__), "tls.private_key"),
])  # fmt: skip
def test_tls_that_cannot_be_set_up_names_its_field(tls, field) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(tls=tls)
    assert caught.value.field == field


def test_a_token_has_no_line_end() -> None:
    with pytest.raises(InvalidRequest, match="line ends"):
        Client(token=f"{JOB}\n")


# --- connecting


@pytest.mark.parametrize(("address", "full"), [
    ("localhost", "localhost:50051"), ("example.com:443", "example.com:443"), ("10.0.0.1", "10.0.0.1:50051"),
    ("::1", "[::1]:50051"), ("[::1]", "[::1]:50051"), ("[::1]:7", "[::1]:7"), (":50051", "localhost:50051"),
    ("unix:/run/s.sock", "unix:/run/s.sock"), ("dns:///s.example:50051", "dns:///s.example:50051"),
])  # fmt: skip
def test_an_address_without_a_port_has_the_services_port(address, full) -> None:
    assert full_address(address) == full
    with Client(address) as client:
        assert client.address == full


@pytest.mark.parametrize(
    "address", ["", "  ", "http://localhost:50051", "localhost:http", "localhost:0", "a:99999", None]
)
def test_what_is_no_address_is_refused(address) -> None:
    with pytest.raises(InvalidRequest) as caught:
        full_address(address)
    assert caught.value.field == "address"


def test_the_client_admits_what_the_service_takes() -> None:
    assert ConnectionSettings.model_fields["max_message_bytes"].default == MAX_MESSAGE_BYTES
    assert Options().max_message_bytes == MAX_MESSAGE_BYTES


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def encrypted(authority: trustme.CA, directory: Path):
    """A service that speaks TLS; yields its address and the client's side of it."""
    authority.cert_pem.write_to_path(directory / "ca.pem")
    made = authority.issue_cert("localhost")
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(made.private_key_pem.bytes(), chain)]))
    server.start()
    try:
        yield f"localhost:{port}", TLS(root_certificates=directory / "ca.pem")
    finally:
        server.stop(0).wait()


BRIEF = Options(retry=Retry(first_wait=0.01, call_seconds=0.2))


def test_plain_text_to_a_service_that_speaks_tls_is_told(authority, tmp_path) -> None:
    with encrypted(authority, tmp_path) as (address, _), Client(address, options=BRIEF) as client:
        with pytest.raises(ConnectionFailed, match="expects TLS"):
            client.get("job")
        with pytest.raises(ConnectionFailed, match="expects TLS"):
            client.explain(IMAGE, model="lamp")


async def test_the_asynchronous_client_tells_it_too(authority, tmp_path) -> None:
    with encrypted(authority, tmp_path) as (address, _):
        async with AsyncClient(address, options=BRIEF) as client:
            with pytest.raises(ConnectionFailed, match="expects TLS"):
                await client.get("job")


def test_tls_to_a_service_in_plain_text_is_told(address) -> None:
    with (
        Client(address, tls=TLS(), options=BRIEF) as client,
        pytest.raises(ConnectionFailed, match="not use TLS"),
    ):
        client.get("job")


def test_a_certificate_that_is_not_trusted_is_told(authority, tmp_path) -> None:
    with encrypted(authority, tmp_path) as (address, tls):
        for wrong in (TLS(), replace(tls, server_name="other")):
            with (
                Client(address, tls=wrong, options=BRIEF) as client,
                pytest.raises(ConnectionFailed, match="TLS handshake"),
            ):
                client.get("job")


def test_an_address_where_nothing_listens_is_no_matter_of_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with Client(f"127.0.0.1:{port}", options=BRIEF) as client, pytest.raises(ConnectionFailed, match="cannot reach"):
        client.get("job")


# --- waiting


def test_an_explanation_that_takes_longer_than_its_timeout_is_cancelled(client, script, job_id) -> None:
    script.hang_after = 2
    with pytest.raises(Expired, match=r"no answer within 0\.5 s"):
        client.explain(IMAGE, model="lamp", timeout=0.5)
    assert script.dropped.wait(30)
    assert script.cancelled_jobs in ([job_id], [])  # none if even the first event took longer on this machine


async def test_the_asynchronous_client_has_a_timeout_too(address, script, options) -> None:
    script.hang_after = 2
    async with AsyncClient(address, options=options) as client:
        with pytest.raises(Expired, match="no answer within"):
            await client.explain(IMAGE, model="lamp", timeout=0.5)


def test_a_timeout_that_is_not_reached_changes_nothing(client) -> None:
    assert client.explain(IMAGE, model="lamp", timeout=60).insertion == 0.4375


def ready(state: "model_pb2.ModelState.ValueType", message: str = "") -> model_pb2.Model:
    return model_pb2.Model(
        name="lamp", version="1", workers=[model_pb2.WorkerModel(worker="w", state=state, message=message)]
    )


def test_waiting_ends_when_a_worker_is_ready(client, script) -> None:
    script.model = ready(model_pb2.MODEL_STATE_LOADING)

    def load() -> None:
        script.model = ready(model_pb2.MODEL_STATE_READY)

    timer = threading.Timer(0.3, load)
    timer.start()
    client.wait_until_ready("lamp", timeout=None)
    assert script.model.workers[0].state == model_pb2.MODEL_STATE_READY
    client.wait_until_ready()
    timer.join()


async def test_the_asynchronous_client_waits_too(address, script, options) -> None:
    script.model = ready(model_pb2.MODEL_STATE_READY)
    async with AsyncClient(address, options=options) as client:
        await client.wait_until_ready("lamp@1", timeout=30)


def test_waiting_for_a_service_that_is_away_ends_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(ConnectionFailed, match="cannot reach"):
        client.wait_until_ready(timeout=0.01)


def test_waiting_says_what_is_in_the_way(client, script) -> None:
    with pytest.raises(Unavailable, match="no worker has the model lamp ready"):
        client.wait_until_ready("lamp", timeout=0.01)
    script.model = ready(model_pb2.MODEL_STATE_FAILED, "the weights are not there")
    with pytest.raises(ModelFailed, match="the weights are not there"):
        client.wait_until_ready("lamp", timeout=30)
    script.refuse = failure(5, "UNKNOWN_MODEL")
    with pytest.raises(UnknownModel):
        client.wait_until_ready("lamp", timeout=0.01)


# --- comparing


def test_explanations_are_equal_by_what_they_say(client, script, job_id) -> None:
    one, other = client.get(job_id), client.get(job_id)
    assert one == other
    assert len({one, other}) == 1
    assert one != replace(one, masks=(replace(one.masks[0], saliency=one.mask + 1),))
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301 - our own
    script.log[-1] = event(15, failed=failure(13, "MODEL_FAILED"))
    assert client.get(job_id) == client.get(job_id) != one
