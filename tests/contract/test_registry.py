"""What can be explained, and which workers can do it."""

import asyncio
import json

import pytest

from sagittal.core.errors import FailedPrecondition, ModelExists, UnknownModel
from sagittal.registry.protocol import Outcomes
from sagittal.v1 import model_pb2

READY = model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY, device="cpu")


def lite(version="1", **fields):
    source = model_pb2.ModelSource(kind="torchvision")
    return model_pb2.Model(name="lite", version=version, **{"source": source} | fields)


def resnet(version="1", **fields):
    return lite(version, source=model_pb2.ModelSource(kind="resnet"), **fields)


async def test_a_published_model_is_there_with_what_its_worker_found(registry) -> None:
    models, workers = registry
    assert workers.publish(model_pb2.Model(name="lite", version="1", digest="abc", labels=["cat", "dog"], classes=2))
    model = await models.model("lite")
    assert (model.version, model.digest, model.labels, model.latest) == ("1", "abc", ["cat", "dog"], True)
    assert model.create_time.seconds > 0
    assert not model.workers


async def test_the_first_version_of_a_name_is_its_latest_until_another_is_said_to_be(registry) -> None:
    models, workers = registry
    await models.register(lite("2"))
    assert workers.declare(lite("10"))
    workers.publish(model_pb2.Model(name="heavy", version="1"))
    assert (await models.model("lite")).version == "2"
    assert not (await models.model("lite", "10")).latest
    assert [(each.name, each.version) for each in await models.models()] == [
        ("heavy", "1"),
        ("lite", "10"),
        ("lite", "2"),
    ]
    await models.update(lite("10"), latest=True)
    assert (await models.model("lite")).version == "10"
    await models.register(lite("11"), latest=True)
    assert (await models.model("lite")).version == "11"


async def test_what_was_declared_stands_beside_what_was_found(registry) -> None:
    models, workers = registry
    declared = lite(labels_from="imagenet-1k", tags={"team": "vision"}, weights_digest="a" * 64)
    await models.register(declared)
    model = await models.model("lite")
    assert model.origin == model_pb2.MODEL_ORIGIN_API
    assert (model.labels_from, dict(model.tags), list(model.labels), model.digest) == (
        "imagenet-1k",
        {"team": "vision"},
        [],
        "",
    )
    found = lite(revision=model.revision, digest="abc", classes=2, labels=["cat", "dog"])
    found.capabilities.supports_gradients = True
    assert workers.publish(found)
    model = await models.model("lite")
    assert (model.digest, model.classes, list(model.labels)) == ("abc", 2, ["cat", "dog"])
    assert model.capabilities.supports_gradients
    assert (model.labels_from, model.tags["team"], model.weights_digest) == ("imagenet-1k", "vision", "a" * 64)


async def test_a_changed_declaration_takes_away_what_was_found_of_the_one_before(registry) -> None:
    models, workers = registry
    workers.declare(lite())
    before = await models.model("lite")
    assert workers.publish(lite(revision=before.revision, digest="abc"))
    changes = workers.changes()
    await models.update(resnet())
    after = await models.model("lite")
    assert (after.source.kind, after.digest) == ("resnet", "")
    assert after.revision > before.revision
    assert after.create_time == before.create_time
    assert workers.changes() > changes
    assert not workers.publish(lite(revision=before.revision, digest="abc")), "found of what is no longer registered"
    assert (await models.model("lite")).digest == ""


async def test_the_same_declaration_changes_nothing(registry) -> None:
    models, workers = registry
    await models.register(lite())
    revision, changes = (await models.model("lite")).revision, workers.changes()
    workers.publish(lite(revision=revision, digest="abc"))
    await models.register(lite())
    await models.update(lite(), revision=12345)
    assert workers.declare(lite())
    model = await models.model("lite")
    assert (model.revision, model.digest, workers.changes()) == (revision, "abc", changes)


async def test_what_the_api_said_holds_over_files(registry) -> None:
    models, workers = registry
    assert workers.declare(lite())
    assert workers.declare(resnet()), "another file"
    await models.update(lite())
    assert not workers.declare(resnet())
    model = await models.model("lite")
    assert (model.source.kind, model.origin) == ("torchvision", model_pb2.MODEL_ORIGIN_API)


async def test_a_restart_with_the_same_file_leaves_the_latest_alone(registry) -> None:
    models, workers = registry
    workers.declare(lite("1"), latest=True)
    workers.declare(lite("2"))
    await models.update(lite("2"), latest=True)
    workers.declare(lite("1"), latest=True)
    assert (await models.model("lite")).version == "2"


async def test_a_version_is_registered_once(registry) -> None:
    models, _ = registry
    await models.register(lite())
    with pytest.raises(ModelExists, match="UpdateModel"):
        await models.register(resnet())
    await models.register(resnet("2"))


async def test_an_update_of_what_was_changed_meanwhile_is_refused(registry) -> None:
    models, _ = registry
    with pytest.raises(UnknownModel):
        await models.update(lite())
    await models.register(lite())
    revision = (await models.model("lite")).revision
    await models.update(resnet(), revision=revision)
    with pytest.raises(FailedPrecondition, match="by another caller"):
        await models.update(lite(tags={"a": "b"}), revision=revision)


async def test_the_latest_of_several_cannot_be_removed(registry) -> None:
    models, workers = registry
    await models.register(lite("1"))
    await models.register(lite("2"))
    with pytest.raises(FailedPrecondition, match="another one the latest"):
        await models.unregister("lite", "1")
    changes = workers.changes()
    await models.unregister("lite", "2")
    assert workers.changes() > changes
    await models.unregister("lite", "1")
    with pytest.raises(UnknownModel):
        await models.unregister("lite", "1")
    assert not await models.models()
    assert not workers.publish(lite("1", revision=1)), "it is gone"


async def test_wishes_reach_workers_each_with_a_turn_of_its_own(registry) -> None:
    models, workers = registry
    with pytest.raises(UnknownModel):
        await models.wish("lite", "", "load")
    await models.register(lite())
    turns = []
    for wish in ("load", "unload", "unload"):
        await models.wish("lite", "", wish)
        (seen,) = workers.registrations()
        assert seen.wish == wish
        assert seen.declaration == lite()
        turns.append(seen.turn)
    assert turns == sorted(set(turns))
    await models.update(resnet())
    assert workers.registrations()[0].wish == ""


async def test_an_unknown_model_names_those_that_exist(registry) -> None:
    models, workers = registry
    with pytest.raises(UnknownModel, match="none"):
        await models.model("lite")
    workers.publish(model_pb2.Model(name="lite", version="1"))
    await models.register(model_pb2.Model(name="heavy", version="1"))
    with pytest.raises(UnknownModel, match="heavy@1, lite@1"):
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


TRIAL = model_pb2.Canary(share=0.05, max_failed=0.1, min_faithfulness=0.9, min_jobs=10)


async def on_trial(models) -> None:
    """Registers two versions of a model, of which the second is on trial."""
    await models.register(lite("1"))
    await models.register(lite("2"))
    await models.set_canary("lite", "2", TRIAL)


def outcomes(version: str, **counts: float) -> Outcomes:
    return Outcomes(name="lite", version=version, **counts)


async def test_a_canary_is_kept_with_its_outcomes_until_it_is_ended(registry) -> None:
    models, workers = registry
    assert workers.report("w", 1, outcomes("1", completed=1)) == ""
    await on_trial(models)
    assert workers.report("w", 2, outcomes("2", completed=4, scored=4, insertion=2.0)) == ""
    assert workers.report("w", 2, outcomes("2", completed=4, scored=4, insertion=2.0)) == "", "it is repeated"
    assert workers.report("other", 2, outcomes("2", completed=4, failed=1, scored=4, insertion=3.0)) == ""
    workers.report("w", 3, outcomes("1", completed=9, scored=9, insertion=4.5))
    record = (await models.canaries())["lite"]
    assert (record.version, record.canary.share, record.canary.rolled_back) == ("2", 0.05, "")
    assert record.canary.outcomes == model_pb2.CanaryOutcomes(completed=8, failed=1, insertion_auc=0.625)
    assert record.canary.latest_outcomes == model_pb2.CanaryOutcomes(completed=9, insertion_auc=0.5)
    await models.set_canary("lite", "2", None)
    assert await models.canaries() == {}


@pytest.mark.parametrize(
    ("canary", "latest", "reason"),
    [
        ({"completed": 8, "failed": 2}, {}, "2 of 10 jobs failed; at most 10 % may"),
        ({"completed": 9, "failed": 1}, {}, ""),
        ({"completed": 5, "failed": 4}, {}, ""),
        (
            {"completed": 10, "scored": 10, "insertion": 4.0},
            {"completed": 90, "scored": 90, "insertion": 45.0},
            "its mean insertion AUC is 0.400, less than 0.9 times the 0.500 of version 1",
        ),
        ({"completed": 10, "scored": 10, "insertion": 4.6}, {"completed": 90, "scored": 90, "insertion": 45.0}, ""),
        ({"completed": 10, "scored": 9, "insertion": 0.9}, {"completed": 90, "scored": 90, "insertion": 45.0}, ""),
        ({"completed": 10, "scored": 10, "insertion": 0.9}, {"completed": 9, "scored": 9, "insertion": 4.5}, ""),
    ],
    ids=["fails", "fails-as-allowed", "too-few", "unfaithful", "faithful", "too-few-scored", "too-few-of-the-latest"],
)
async def test_a_canary_that_is_worse_is_rolled_back_once(registry, canary, latest, reason: str) -> None:
    models, workers = registry
    await on_trial(models)
    assert workers.report("w", 1, outcomes("1", **latest)) == ""
    assert workers.report("w", 2, outcomes("2", **canary)) == reason
    assert (await models.canaries())["lite"].canary.rolled_back == reason
    if reason:
        assert workers.report("w", 3, outcomes("2", failed=100)) == "", "it is told once"
        await models.set_canary("lite", "2", TRIAL)
        assert (await models.canaries())["lite"].canary.rolled_back == "", "it is tried again"


async def test_a_version_that_becomes_the_latest_is_on_trial_no_longer(registry) -> None:
    models, workers = registry
    await on_trial(models)
    await models.update(lite("2"), latest=True)
    assert workers.report("w", 1, outcomes("2", failed=100)) == ""
    assert await models.canaries() == {}


async def test_reports_of_workers_that_are_gone_are_forgotten(registry) -> None:
    models, workers = registry
    await on_trial(models)
    hour = 3600 * 10**9
    for number in range(5):
        workers.report(f"worker-{number}", number * hour // 2, outcomes("2", completed=1))
    stored = json.loads(await models._redis.client.hget(f"{models._root}canaries", "lite"))
    assert stored["reports"].keys() == {"worker-2@2", "worker-3@2", "worker-4@2"}
    assert (await models.canaries())["lite"].canary.outcomes.completed == 5


async def test_only_another_version_that_exists_can_be_tried(registry) -> None:
    models, _ = registry
    await models.register(lite("1"))
    with pytest.raises(FailedPrecondition, match="latest version"):
        await models.set_canary("lite", "1", TRIAL)
    with pytest.raises(UnknownModel, match="registered models: lite@1"):
        await models.set_canary("lite", "2", TRIAL)
