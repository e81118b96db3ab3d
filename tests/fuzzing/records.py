"""What stands in Redis, damaged at several places at once: neighbours go on, all jobs end, and nothing takes long.

Anything that the queue or the registry keeps may be deleted, of another type, garbage, or have ghosts in it.
"""

import asyncio
import logging
import random
import secrets
import time

import structlog
from embedded_queue import own_settings
from integration.test_redis_damage import Site, another_type, damages

from fuzzing.campaign import Outcome
from fuzzing.oracles import MEBI, REDIS_SECONDS, redis_costs
from sagittal.core.jobs import JobKind, Lane, NewJob

#: Keys that are damaged at once, at most.
MOST = 4

#: Memory that Redis may hold more at the end of a site than at its beginning, in bytes.
LEFT_BYTES = 8 * MEBI


def new_job(**changes: object) -> NewJob:
    """Returns a job to submit."""
    plain: dict[str, object] = {
        "job_id": secrets.token_hex(16), "kind": JobKind.EXPLANATION, "model": "model", "version": "1",
        "method": "igos++", "lane": Lane.INTERACTIVE, "request": b"request", "images": {"image": b"\x00image\xff"},
    }  # fmt: skip
    return NewJob(**(plain | changes))  # type: ignore[arg-type]


def fuzz_records(seconds: float, *, first: int = 0) -> Outcome:
    """Damages one site after the other, each by its number, until the time is up."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    began, number, fault = time.monotonic(), first, ""
    while not fault and time.monotonic() - began < seconds:
        fault = asyncio.run(damage_and_use(number))
        number += 1
    return Outcome(target="records", seconds=time.monotonic() - began, inputs=number - first, edges=0, fault=fault)


async def damage_and_use(number: int) -> str:
    """Returns what went wrong after the damage of this number; empty where nothing did."""
    draw = random.Random(number)
    site = Site(own_settings(sweep_seconds=600), new_job)
    await site.open()
    done: list[str] = []
    before = redis_costs(site.client)
    try:
        done.extend(_damage(site, draw) for _ in range(draw.randint(1, MOST)))
        await site.use_as_a_neighbour()
        await site.ask_everything()
        await site.all_jobs_end()
        await site.use_as_a_neighbour()
        after = redis_costs(site.client)
        assert after[1] - before[1] < REDIS_SECONDS, f"Redis computed for {after[1] - before[1]:.2f} s"
        assert after[0] - before[0] < LEFT_BYTES, f"Redis holds {after[0] - before[0]:,} bytes more"
    except Exception as error:  # noqa: BLE001 - whatever comes of damage is what is looked for
        return f"site {number}, {'; '.join(done)}: {error!r}"
    finally:
        await site.close()
    return ""


def _damage(site: Site, draw: random.Random) -> str:
    """Damages a key, and says which and how."""
    keys = sorted(site.stored_keys(), key=lambda key: _place(site, key))
    key = draw.choice(keys)
    found = damages(site.client, key) | {"another type": another_type(site.client.type(key).decode())}
    how = draw.choice(sorted(found))
    found[how](site.client, key)
    return f"{_place(site, key)} {how}"


def _place(site: Site, key: bytes) -> str:
    """Returns a key's name with the identifiers of jobs, which chance makes, as their places."""
    name = key.decode(errors="replace").removeprefix(site.root)
    for place, job_id in enumerate(site.ids):
        name = name.replace(job_id, f"JOB{place}")
    return name
