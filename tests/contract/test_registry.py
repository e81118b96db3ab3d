"""What can be explained, and which workers can do it."""

import asyncio

import pytest

from sagittal.core.errors import UnknownModel
from sagittal.v1 import model_pb2

READY = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY, device="cpu")


async def test_a_published_model_is_there_with_what_its_worker_found(registry) -> None:
    models, workers = registry
    workers.publish(model_pb2.Model(name="lite", version="1", digest="abc", labels=["cat", "dog"], classes=2))
    model = await models.model("lite")
    assert (model.version, model.digest, model.labels, model.latest) == ("1", "abc", ["cat", "dog"], True)
    assert model.create_time.seconds > 0
    assert not model.workers


async def test_the_first_version_of_a_name_is_its_latest(registry) -> None:
    models, workers = registry
    await models.register(model_pb2.Model(name="lite", version="2"))
    workers.publish(model_pb2.Model(name="lite", version="10"))
    workers.publish(model_pb2.Model(name="heavy", version="1"))
    assert (await models.model("lite")).version == "2"
    assert not (await models.model("lite", "10")).latest
    assert [(each.name, each.version) for each in await models.models()] == [
        ("heavy", "1"),
        ("lite", "10"),
        ("lite", "2"),
    ]


async def test_publishing_again_replaces_all_but_the_time(registry) -> None:
    models, workers = registry
    await models.register(model_pb2.Model(name="lite", version="1", labels=["cat"]))
    before = await models.model("lite")
    workers.publish(model_pb2.Model(name="lite", version="1", digest="abc"))
    after = await models.model("lite")
    assert (after.digest, list(after.labels)) == ("abc", [])
    assert after.create_time == before.create_time


async def test_an_unknown_model_names_those_that_exist(registry) -> None:
    models, workers = registry
    with pytest.raises(UnknownModel, match="none"):
        await models.model("lite")
    workers.publish(model_pb2.Model(name="lite", version="1"))
    with pytest.raises(UnknownModel, match="lite@1"):
        await models.model("light")
    with pytest.raises(UnknownModel, match="lite@1"):
        await models.model("lite", "2")
    with pytest.raises(UnknownModel, match="lite@1"):
        await models.model("")


async def test_workers_show_until_they_withdraw_or_fall_silent(registry) -> None:
    models, workers = registry
    workers.publish(model_pb2.Model(name="lite", version="1"))
    workers.announce("b", [("lite", "1", READY)], ttl=60)
    workers.announce("a", [("lite", "1", READY), ("other", "1", READY)], ttl=60)
    workers.announce("brief", [("lite", "1", READY)], ttl=0.01)
    await asyncio.sleep(0.05)
    found = (await models.model("lite")).workers
    assert [(each.worker, each.state, each.device) for each in found] == [
        ("a", model_pb2.MODEL_STATE_READY, "cpu"),
        ("b", model_pb2.MODEL_STATE_READY, "cpu"),
    ]
    workers.withdraw("a")
    workers.announce("b", [], ttl=60)
    assert not (await models.models())[0].workers
