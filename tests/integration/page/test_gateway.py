"""The API for browsers: Connect in binary and JSON, streams, errors with details, cancellation, origins, tokens."""

import asyncio
import base64
import gzip
import hashlib
import json
import struct
import urllib.error
import urllib.request

import pytest
from google.rpc import error_details_pb2

from sagittal.core.jobs import JobState
from sagittal.server.settings import Token
from sagittal.v1 import explanation_service_pb2, model_service_pb2

from ..service.support import eventually, quick_settings, spec, wait_for_cancel

LIST = "/sagittal.v1.ModelService/ListModels"
GET = "/sagittal.v1.ModelService/GetModel"
PROXIED = "X-Forwarded-Access-Token"
EXPLAIN = "/sagittal.v1.ExplanationService/Explain"

#: Over a connection to the service, and inside it.
places = pytest.mark.parametrize("inside", [False, True], ids=["connected", "inside"])


def request(url, data=None, method=None, **headers):
    asked = urllib.request.Request(  # noqa: S310 - an address of this test
        url, data=data, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:  # noqa: S310
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


async def ask(*arguments, **headers):
    return await asyncio.to_thread(request, *arguments, **headers)


def envelopes(body):
    """Yields flags and content of each message of a Connect stream."""
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        yield flags, body[5 : 5 + size]
        body = body[5 + size :]


def enveloped(message):
    return struct.pack(">BI", 0, len(message)) + message


async def test_the_page_is_served_and_lets_nothing_leave_its_origin(serve):
    async with serve() as (address, _):
        status, headers, body = await ask(address + "/")
        assert status == 200
        assert b"<script type" in body
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        size = len(gzip.compress(body))
        for name in ("page.js", "page.css", "icon.svg"):
            status, _, content = await ask(f"{address}/{name}")
            assert status == 200
            size += len(gzip.compress(content))
        assert size <= 200_000
        assert (await ask(address + "/livez"))[2] == b"ok\n"
        assert (await ask(address + "/../settings.py"))[0] == 404


async def test_a_call_is_answered_in_binary_and_in_json(serve):
    async with serve() as (address, _):
        binary = model_service_pb2.ListModelsRequest().SerializeToString()
        _, headers, body = await ask(address + LIST, binary, content_type="application/proto")
        assert headers["content-type"] == "application/proto"
        assert [model.name for model in model_service_pb2.ListModelsResponse.FromString(body).models] == ["lamp"]
        _, _, body = await ask(address + LIST, b"{}", content_type="application/json")
        assert json.loads(body)["models"][0]["name"] == "lamp"


@places
async def test_an_error_keeps_its_code_and_its_details(serve, inside):
    async with serve(inside=inside) as (address, _):
        status, _, body = await ask(address + GET, b'{"name": "candle"}', content_type="application/json")
        error = json.loads(body)
        assert status == 404
        assert error["code"] == "not_found"
        assert "candle" in error["message"]
        details = {each["type"]: base64.b64decode(each["value"] + "==") for each in error["details"]}
        reason = error_details_pb2.ErrorInfo.FromString(details["google.rpc.ErrorInfo"]).reason
        assert reason == "UNKNOWN_MODEL"


@pytest.mark.parametrize("body", [b"{", b'{"name": 3}', b"\xff"])
async def test_json_that_is_no_request_is_refused(serve, body):
    async with serve() as (address, _):
        status, _, answer = await ask(address + GET, body, content_type="application/json")
        assert status == 400
        assert json.loads(answer)["code"] == "invalid_argument"


@places
async def test_events_are_streamed_by_connect_and_by_grpc_web(serve, inside):
    async with serve(inside=inside) as (address, stack), stack.worker().at_work():
        message = enveloped(explanation_service_pb2.ExplainRequest(spec=spec()).SerializeToString())
        _, _, body = await ask(address + EXPLAIN, message, content_type="application/connect+proto")
        *events, (flags, end) = envelopes(body)
        kinds = [
            explanation_service_pb2.ExplainResponse.FromString(each).event.WhichOneof("event") for _, each in events
        ]
        assert kinds[0] == "accepted"
        assert kinds[-1] == "completed"
        assert flags == 2
        assert "error" not in json.loads(end)
        _, _, body = await ask(address + EXPLAIN, message, content_type="application/grpc-web+proto", x_grpc_web="1")
        *events, (flags, trailers) = envelopes(body)
        last = explanation_service_pb2.ExplainResponse.FromString(events[-1][1])
        assert last.event.WhichOneof("event") == "completed"
        assert flags & 0x80
        assert b"grpc-status: 0" in trailers.lower()


@places
async def test_closing_a_request_cancels_the_call(serve, inside):
    async with serve(inside=inside) as (address, stack), stack.worker(wait_for_cancel).at_work():
        host, port = address.removeprefix("http://").split(":")
        message = enveloped(explanation_service_pb2.ExplainRequest(spec=spec()).SerializeToString())
        reader, writer = await asyncio.open_connection(host, int(port))
        head = [f"POST {EXPLAIN} HTTP/1.1", f"host: {host}", "content-type: application/connect+proto"]
        head += [f"content-length: {len(message)}", "", ""]
        writer.write("\r\n".join(head).encode() + message)
        assert b"200" in await reader.readline()
        writer.close()
        await eventually(lambda: all_cancelled(stack))


@places
async def test_a_call_ends_at_its_deadline_and_its_job_is_cancelled(serve, inside):
    async with serve(inside=inside) as (address, stack), stack.worker(wait_for_cancel).at_work():
        message = enveloped(explanation_service_pb2.ExplainRequest(spec=spec()).SerializeToString())
        headers = {"content_type": "application/connect+proto", "connect_timeout_ms": "500"}
        _, _, body = await ask(address + EXPLAIN, message, **headers)
        *_, (_, end) = envelopes(body)
        assert json.loads(end)["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: all_cancelled(stack))


async def all_cancelled(stack):
    jobs, _ = await stack.queue.jobs.list(limit=5, page_token="")
    return all(job.state is JobState.CANCELLED for job in jobs)


async def test_http_2_is_spoken_by_those_who_ask_for_it(serve):
    """A request for /livez in HTTP/2: its preface, its settings, and headers from the static table of HPACK."""
    async with serve() as (address, _):
        host, port = address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        headers = b"\x82\x86\x04\x06/livez\x01\x01x"
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, headers))
        answers = {}
        while 0 not in answers:
            length, kind, _, stream = struct.unpack(">3sBBI", await reader.readexactly(9))
            content = await reader.readexactly(int.from_bytes(length, "big"))
            if stream == 1:
                answers.setdefault(kind, content)
        writer.close()
        assert answers[1][:1] == b"\x88"  # :status 200
        assert answers[0] == b"ok\n"


def frame(kind, flags, stream, content):
    return struct.pack(">3sBBI", len(content).to_bytes(3, "big"), kind, flags, stream) + content


async def test_a_token_is_passed_on_and_a_wrong_one_refused(serve):
    tokens = {hashlib.sha256(b"right").hexdigest(): Token(tenant="t", roles=("explain",))}
    async with serve(quick_settings(tokens=tokens)) as (address, _):
        assert (await ask(address + LIST, b"{}", content_type="application/json"))[0] == 401
        wrong = await ask(address + LIST, b"{}", content_type="application/json", authorization="Bearer wrong")
        right = await ask(address + LIST, b"{}", content_type="application/json", authorization="Bearer right")
        assert (wrong[0], right[0]) == (401, 200)
        report = f"{address}/reports/{'0' * 32}"
        assert (await ask(report))[0] == 401
        status, _, text = await ask(report, authorization="Bearer right")
        assert (status, b"0000" in text) == (404, True)
        assert (await ask(f"{address}/metrics.json"))[0] == 401
        status, _, text = await ask(f"{address}/metrics.json", authorization="Bearer right")
        assert (status, b"SAGITTAL_PAGE_METRICS" in text) == (404, True)


async def test_a_reverse_proxy_passes_on_the_token_by_a_header_of_its_own(serve):
    tokens = {hashlib.sha256(b"right").hexdigest(): Token(tenant="t", roles=("explain",))}
    async with serve(quick_settings(tokens=tokens), token_header=PROXIED) as (address, _):
        answer = await ask(address + LIST, b"{}", content_type="application/json", **{PROXIED: "right"})
        assert answer[0] == 200
        report = f"{address}/reports/{'0' * 32}"
        assert [(await ask(report))[0], (await ask(report, **{PROXIED: "Bearer right"}))[0]] == [401, 404]


async def test_the_header_of_a_reverse_proxy_is_ignored_unless_it_is_configured(serve):
    tokens = {hashlib.sha256(b"right").hexdigest(): Token(tenant="t", roles=("explain",))}
    async with serve(quick_settings(tokens=tokens)) as (address, _):
        for name in (PROXIED, "X-Auth-Request-Access-Token", "X-Forwarded-User"):
            assert (await ask(address + LIST, b"{}", content_type="application/json", **{name: "right"}))[0] == 401


async def test_other_origins_may_call_if_they_are_listed(serve):
    async with serve(origins=("https://tools.example",)) as (address, _):
        asked = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
        _, headers, _ = await ask(address + LIST, None, "OPTIONS", origin="https://tools.example", **asked)
        assert headers["access-control-allow-origin"] == "https://tools.example"
        _, headers, _ = await ask(address + LIST, None, "OPTIONS", origin="https://evil.example", **asked)
        assert "access-control-allow-origin" not in headers


async def test_a_service_that_is_away_is_unavailable(serve):
    async with serve() as (address, stack):
        await stack.service.stop()
        status, _, body = await ask(address + LIST, b"{}", content_type="application/json", connect_timeout_ms="2000")
        assert status in (503, 504)
        assert json.loads(body)["code"] in ("unavailable", "deadline_exceeded")
