"""The service registers the models of its files, and reports a registry that has lost its models."""

import grpc
import structlog
from embedded_queue import depth
from prometheus_client import CollectorRegistry

from sagittal.core.models import ModelEntry
from sagittal.registry.concept_sets import ConceptSets
from sagittal.registry.protocol import ModelRegistry
from sagittal.server.metrics import ServiceMetrics
from sagittal.server.readiness import RegistryWatch
from sagittal.v1 import explanation_service_pb2, explanation_service_pb2_grpc, model_pb2

from .support import Queue, Registry, Service, eventually, quick_settings, running, spec

CANDLE = ModelEntry(name="candle", source={"kind": "torchvision", "model": "resnet18"})


def by_api() -> model_pb2.Model:
    source = model_pb2.ModelSource(kind="torchvision")
    source.settings.update({"model": "resnet18"})
    return model_pb2.Model(name="torch", version="1", source=source)


async def names(registry: ModelRegistry) -> set[str]:
    return {model.name for model in await registry.models()}


async def lose(registry: Registry) -> None:
    """Empties Redis of all that is under this registry's prefix, as a flush does."""
    client, root = registry.models._redis.client, registry.models._root
    keys = [key async for key in client.scan_iter(match=f"{root}*")]
    await client.delete(*keys)


async def test_a_fresh_install_takes_jobs_for_the_models_of_its_files_before_any_worker_has_started() -> None:
    queue, registry = Queue(), Registry()
    concepts = ConceptSets(queue.settings, max_tenant_bytes=2**20)
    service = Service(
        quick_settings(), queue.jobs, registry.models, CollectorRegistry(), concepts=concepts, entries=[CANDLE]
    )
    port = (await service.start())[0]
    try:
        await eventually(lambda: service.ready() == "")
        assert await names(registry.models) == {"candle"}
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            request = explanation_service_pb2.SubmitExplanationRequest(spec=spec(model="candle"))
            assert (await stub.SubmitExplanation(request)).explanation.job_id
        assert await depth(queue.jobs) == {("candle", "interactive"): 1}, "the autoscaler sees it"
    finally:
        await service.stop()
        await queue.close()
        await registry.close()


async def test_a_registry_that_lost_its_models_is_reported_and_gets_those_of_files_back() -> None:
    registry, metrics = Registry(), CollectorRegistry()
    await registry.models.register(by_api())
    watch = RegistryWatch(registry.models, [CANDLE], ServiceMetrics(metrics))
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert {model.name for model in await watch.look()} == {"torch", "candle"}
        assert not logs
        await lose(registry)
        for _ in range(3):
            assert [model.name for model in await watch.look()] == ["candle"]
    (line,) = logs
    assert (line["event"], line["log_level"], line["models_gone"]) == ("registry-emptied", "error", ["torch 1"])
    assert metrics.get_sample_value("sagittal_registry_lost_total") == 1
    await registry.close()


async def test_a_running_service_reports_a_registry_that_was_emptied() -> None:
    async with running() as stack:
        await eventually(lambda: stack.service.ready() == "")
        with structlog.testing.capture_logs() as logs:
            await lose(stack.registry)
            await eventually(lambda: stack.metric("sagittal_registry_lost_total") == 1)
        assert [line["log_level"] for line in logs if line["event"] == "registry-emptied"] == ["error"]
