"""A script checks all its arguments before it writes: what it refuses leaves the keys exactly as they were."""

import math
import secrets
from collections.abc import Iterator

import pytest
import redis
from embedded_queue import depth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_scripts import Argument, Scripts, plain_job, use_as_a_neighbour
from redis.exceptions import ResponseError

from sagittal.core.errors import ArgumentRefused
from sagittal.core.jobs import JobState
from sagittal.queue.failures import translate
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.scripts import script_names, submit_arguments
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import sweep_arguments

EXTREMES: list[Argument] = [
    "", " ", "0", "-1", "-0", "1", "1.5", "x", "nan", "NaN", "-nan", "inf", "-inf", "Infinity", "0x10", "1e17", "1e308",
    "1e-308", "-1e17", "1e400", 10**17, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**53), -(2**63), 10**30,
    0.1, math.inf, math.nan, b"\x00", b"\xff\xfe", "9" * 400, ",", "a,b", ":", "1 2", "queued", "interactive",
]  # fmt: skip


class Prepared:
    """Scripts on a queue with a waiting, a running and an ended job, and plain arguments of each script."""

    def __init__(self, client: redis.Redis) -> None:
        self.scripts = scripts = Scripts(client)
        scripts.run("batch_create", "default", "batch", b"spec", 10, 100)
        self.jobs = [plain_job(), plain_job(), plain_job(batch="batch", item="item")]
        for job in self.jobs:
            scripts.submit(job)
        ended, running = scripts.lease(), scripts.lease()
        ended_id, waiting = self.jobs[0].job_id, self.jobs[2].job_id
        scripts.run("settle", ended_id, ended[1], "completed", 0, 2**20, 2**30, 2**29, 0, 0, "", b"tdone")
        held = (self.jobs[1].job_id, running[1])
        now = "1700000000000000000"
        files = ("weights.safetensors", "examples.examples")
        scripts.run("concepts_reserve", 60, *files, "more")
        scripts.run("concepts_save", "import", "job", 0, "tenant", "model", "set", "", b"set", *files, 10, 2**30)
        self.plain: dict[str, tuple[Argument, ...]] = {
            "append": (*held, 1, 2**20, 2**30, 2**29, b"e1", b"e2"),
            "attach": (plain_job().job_id, "part", b"bytes", "default", 2**30, 2**29),
            "attachment": (waiting, "part"),
            "backlog": (),
            "stored": (),
            "costs": ("model", "1", "igos++"),
            "registry_changes": (),
            "registry_quarantine": ("models", "model@1", "is damaged"),
            "cancel": (waiting, "why", b"event"),
            "checkpoint": (*held, b"state"),
            "delete": (ended_id, "nonce"),
            "end": ("run", waiting, "0", "failed", "WHY", b"event"),
            "get": (waiting,),
            "heartbeat": (15.0, *held),
            "lease": ("worker", "nonce", 15.0, 5, "", "", "model@1", "other@1"),
            "list": ("", 10, 100, "", "", "", "queued,running", "", "", "", "&run=night&", "", "", ""),
            "read": (waiting, 0, 16, 2**20, ""),
            "release": held,
            "request": (waiting,),
            "settle": (*held, "completed", 60.0, 2**20, 2**30, 2**29, 10, 1.5, "", b"e1", b"tdone"),
            "submit": tuple(
                submit_arguments(plain_job(content_key="k", batch="batch", item="new"), b"accepted", scripts.settings)
            ),
            "sweep": sweep_arguments(scripts.settings),
            "batch_change": ("default", "batch", "paused"),
            "batch_create": ("default", "batch", b"spec", 10, 100),
            "batch_delete": ("default", "batch", "nonce"),
            "batch_fail": ("default", "batch", "other", b"event", 100),
            "batch_get": ("default", "batch"),
            "batch_items": ("default", "batch", 0, 10, "qf"),
            "batch_list": ("default", "", 10),
            "batch_live": ("default", "batch", 0, 10),
            "batch_retry": ("default", "batch", 0, 10, "key"),
            "concepts_delete": ("tenant", "model", "set", "nonce"),
            "concepts_list": ("tenant", "model", "", 50),
            "concepts_quarantine": ("tenant", "model", "set", "1"),
            "concepts_read": ("tenant", "model", "set"),
            "concepts_reserve": (60.0, "file"),
            "concepts_save": (
                "fit",
                *held,
                "tenant",
                "model",
                "set",
                "1",
                b"document",
                "more",
                "more",
                10,
                2**30,
            ),
            "concepts_sweep": (100, "file"),
            "concepts_update": ("tenant", "model", "set", "1", b"document", 2**30),
            "registry_announce": ("worker", 15.0, "model@1", b"state", "1"),
            "registry_declare": ("model", "1", b"declaration", now, "register", "1", ""),
            "registry_publish": ("model", "1", b"model", now, "0"),
            "registry_read": ("all", "", ""),
            "registry_remove": ("model", "1"),
            "registry_canaries": (),
            "registry_canary": ("model", "2", 0.5, 0.1, 0.9, 20, now),
            "registry_outcomes": ("worker", now, "model", "1", 3, 1, 2, 1.5),
            "registry_wish": ("model", "1", "load"),
            "registry_withdraw": ("worker",),
        }


@pytest.fixture(params=["valkey", "redis"])
def client(request) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(request.getfixturevalue(f"{request.param}_url")) as found:
        yield found


NAMES = script_names()


def call(prepared: Prepared, name: str, arguments: list[Argument]) -> bool:
    """Calls a script; returns whether it took its arguments. Fails where it wrote and refused, or failed otherwise."""
    before = prepared.scripts.snapshot()
    try:
        prepared.scripts.run(name, *arguments)
    except ResponseError as error:
        if not isinstance(translate(error, prepared.scripts.settings), ArgumentRefused):
            raise AssertionError(f"{name}{arguments} failed otherwise than by its arguments") from error
    else:
        return True
    assert prepared.scripts.snapshot() == before
    return False


def test_every_script_is_among_them(client) -> None:
    assert set(Prepared(client).plain) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_script_works_with_plain_arguments(client, name) -> None:
    prepared = Prepared(client)
    assert call(prepared, name, list(prepared.plain[name]))
    use_as_a_neighbour(prepared.scripts)


@pytest.mark.parametrize("name", NAMES)
def test_no_script_takes_too_few_or_half_a_group_of_arguments(client, name) -> None:
    prepared = Prepared(client)
    plain = list(prepared.plain[name])
    if plain:
        assert not call(prepared, name, [])
    if name not in (
        "append",
        "settle",
        "lease",
        "batch_retry",
        "concepts_reserve",
        "concepts_sweep",
    ):  # which take any number
        assert not call(prepared, name, [*plain, "more"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), data=st.data())
def test_extremes_are_refused_without_a_trace_or_do_no_harm_to_others(client, name, data) -> None:
    prepared = Prepared(client)
    arguments = list(prepared.plain[name])
    if arguments:
        positions = data.draw(st.lists(st.integers(0, len(arguments) - 1), min_size=1, max_size=3, unique=True))
        for position in positions:
            arguments[position] = data.draw(st.sampled_from(EXTREMES))
    call(prepared, name, arguments)
    use_as_a_neighbour(prepared.scripts)
    prepared.scripts.delete_keys()


@pytest.mark.parametrize("extreme", EXTREMES, ids=repr)
def test_each_number_of_submit_settle_and_sweep_at_each_extreme(client, extreme) -> None:
    prepared = Prepared(client)
    for name in ("settle", "sweep", "submit"):
        for position in range(len(prepared.plain[name])):
            arguments = list(prepared.plain[name])
            arguments[position] = extreme
            call(prepared, name, arguments)
    use_as_a_neighbour(prepared.scripts)
    prepared.scripts.delete_keys()


@pytest.mark.parametrize("server", ["valkey", "redis"])
async def test_a_refused_argument_is_an_error_that_names_it(request, server, new_job) -> None:
    found = QueueSettings(url=request.getfixturevalue(f"{server}_url"), prefix=f"test-{secrets.token_hex(6)}")
    jobs, worker = RedisJobQueue(found), RedisWorkerQueue(found, worker="worker")
    for estimate in (10**17, 2**63, 2**70, -1):
        with pytest.raises(ArgumentRefused, match="estimated_evaluations is") as caught:
            await jobs.submit(new_job(estimated_evaluations=estimate), b"a")
        assert caught.value.field == "estimated_evaluations"
    assert await depth(jobs) == {}
    job, _ = await jobs.submit(new_job(estimated_evaluations=10**12), b"a")
    worker.settle(worker.lease([("model", "1")], block_seconds=0), b"done", JobState.COMPLETED)
    assert (await jobs.get(job.job_id)).state is JobState.COMPLETED
    worker.close()
    await jobs.close()
