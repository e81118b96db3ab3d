"""The effect of twelve floods by one tenant on another tenant's explanations, in quiet and flooded phases of one run.

`python benchmarks/isolation.py [--rounds 4] [--seconds 4] [--write docs/performance.md]`: the service, Valkey and a
worker that answers at once run as processes. A neighbour asks for one explanation after the other; in every second
phase another tenant floods.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from answering_worker import MODEL, answer, model
from floods import ABSENT, FLOODS, METADATA, TOKEN
from reports import table, write_section
from service_load import percentile, picture
from service_stack import HERE, Stack, running_stack

from sagittal.core.jobs import JobState
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2, tensor_pb2
from sagittal.v1 import explanation_service_pb2 as api
from sagittal.v1 import explanation_service_pb2_grpc as rpc

#: Concurrent explanations of the neighbour, and its bearer token.
STREAMS, NEIGHBOUR = 2, "neighbour"
#: Maximum growth factor of the neighbour's 99th percentile.
GOAL = 1.2
#: Time at the start of a phase that is not measured, in seconds.
SETTLE = 0.5
#: Events of the large log, and bytes of each.
EVENTS, EVENT_BYTES = 200, 100_000


@dataclass(slots=True)
class Compared:
    """The neighbour's explanations with and without a flood, in seconds, and the flood's responses."""

    quiet: list[list[float]] = field(default_factory=list)
    flooded: list[list[float]] = field(default_factory=list)
    codes: "Counter[str]" = field(default_factory=Counter)
    seconds: float = 0.0
    used: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    """Processor time of the service in quiet and in flooded phases."""

    def ratio(self, share: float) -> float:
        """Returns flooded over quiet at a percentile: the median over the pairs of phases."""
        pairs = zip(self.quiet, self.flooded, strict=True)
        return statistics.median(percentile(flooded, share) / percentile(quiet, share) for quiet, flooded in pairs)


@contextmanager
def installation() -> Iterator[Stack]:
    """Runs the service with two tenants, a worker that answers at once, and a model that no worker has."""
    digests = {hashlib.sha256(name.encode()).hexdigest(): {"tenant": name} for name in (TOKEN, NEIGHBOUR)}
    with tempfile.TemporaryDirectory() as concepts:
        environment = {
            "SAGITTAL_TOKENS": json.dumps(digests),
            "SAGITTAL_CONCEPTS__DIRECTORY": concepts,
            "SAGITTAL_LOG_LEVEL": "error",
        }
        worker = [str(HERE / "answering_worker.py")]
        with running_stack(worker, model=MODEL, environment=environment, token=NEIGHBOUR) as stack:
            registry = RedisWorkerRegistry(stack.settings)
            absent = model()
            absent.name = ABSENT
            registry.publish(absent)
            registry.close()
            yield stack


def store_large_log(stack: Stack) -> str:
    """Returns an ended job of the hostile tenant, whose log has `EVENTS` large events."""
    with grpc.insecure_channel(stack.address) as channel:
        stub = rpc.ExplanationServiceStub(channel)
        spec = explanation_pb2.ExplanationSpec(model=ABSENT, image=tensor_pb2.Image(encoded=picture()))
        job = stub.SubmitExplanation(api.SubmitExplanationRequest(spec=spec), metadata=METADATA).explanation.job_id
    queue = RedisWorkerQueue(stack.settings, worker="isolation")
    lease = queue.lease([(ABSENT, "1")], block_seconds=5.0)
    if lease is None:
        raise SystemExit("the job with the large log was not handed out")
    large = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[EVENT_BYTES], data=bytes(EVENT_BYTES))
    event = explanation_pb2.ExplanationEvent(job_id=job, mask=explanation_pb2.Mask(saliency=large, final=True))
    for _ in range(EVENTS):
        queue.append(lease, [event.SerializeToString()])
    queue.settle(lease, answer(lease)[1], JobState.COMPLETED)
    queue.close()
    return job


async def ask(stub: "rpc.ExplanationServiceAsyncStub", image: bytes, seed: int) -> float:
    """Returns the seconds of one explanation of the neighbour."""
    spec = explanation_pb2.ExplanationSpec(model=MODEL, seed=seed, image=tensor_pb2.Image(encoded=image))
    began, last = time.perf_counter(), ""
    metadata = (("authorization", f"Bearer {NEIGHBOUR}"),)
    async for response in stub.Explain(api.ExplainRequest(spec=spec), metadata=metadata):
        last = response.event.WhichOneof("event") or ""
    if last != "completed":
        raise SystemExit(f"the neighbour's job ended as {last}")
    return time.perf_counter() - began


class Neighbour:
    """Requests explanations, each with a different seed."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = rpc.ExplanationServiceStub(self._channel)
        self._image, self._seed = picture(), 0

    async def phase(self, seconds: float) -> list[float]:
        """Returns the seconds of each explanation that started after `SETTLE`."""
        began = time.perf_counter()
        times: list[float] = []

        async def ask_on() -> None:
            while (at := time.perf_counter() - began) < seconds:
                self._seed += 1
                took = await ask(self._stub, self._image, self._seed)
                if at > SETTLE:
                    times.append(took)

        await asyncio.gather(*(ask_on() for _ in range(STREAMS)))
        return times


async def compare(stack: Stack, name: str, job: str, rounds: int, seconds: float) -> Compared:
    """Measures the neighbour in alternating quiet and flooded phases, each pair in the other order."""
    flood = subprocess.Popen(  # noqa: ASYNC220 - it is there before the first phase
        [sys.executable, str(HERE / "floods.py"), name, stack.address, job],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found, neighbour = Compared(), Neighbour(stack.address)
    assert flood.stdin is not None
    assert flood.stdout is not None
    try:
        await asyncio.to_thread(flood.stdout.readline)
        await neighbour.phase(1.0)
        for number in range(rounds):
            for flooded in (False, True) if number % 2 == 0 else (True, False):
                if flooded:
                    _say(flood, "go")
                before = stack.cpu_seconds()["service"]
                times = await neighbour.phase(seconds)
                found.used[flooded] += (stack.cpu_seconds()["service"] - before) / (rounds * seconds)
                if flooded:
                    _say(flood, "stop")
                    found.codes.update(json.loads(await asyncio.to_thread(flood.stdout.readline)))
                    found.seconds += seconds
                    await _until_settled(neighbour)
                (found.flooded if flooded else found.quiet).append(times)
    finally:
        flood.stdin.close()
        flood.kill()
        flood.wait()
    return found


def _say(flood: "subprocess.Popen[str]", word: str) -> None:
    assert flood.stdin is not None
    flood.stdin.write(f"{word}\n")
    flood.stdin.flush()


async def _until_settled(neighbour: Neighbour) -> None:
    """Waits until the remains of the flood are gone: calls that end, and jobs that the worker still has to answer."""
    await neighbour.phase(1.0)


def report(found: dict[str, Compared], rounds: int, seconds: float) -> str:
    """Returns the section of the document."""
    rows = [_row(name, each) for name, each in found.items()]
    kept = sum(each.ratio(0.99) <= GOAL for each in found.values())
    header = [
        "flood",
        "calls/s",
        "answers",
        "quiet, ms (p50 / p99)",
        "flooded, ms (p50 / p99)",
        "ratio p50",
        "ratio p99",
        "service's processor (quiet / flooded)",
    ]
    return f"""## What a flood does to another tenant

Written by `make bench-isolation`. The service, Valkey (`appendfsync always`) and a worker that answers at once, each a
process, on {len(os.sched_getaffinity(0))} processors. A neighbour asks for {STREAMS} explanations at a time, one after
the other, with a 224 x 224 JPEG. Another tenant floods in every second phase, as fast as it is answered. Its program
has the lowest priority, because it would run on another machine; the others have the nice value {os.nice(0)}.
Each flood has {rounds} pairs of phases of {seconds:g} s. A ratio is
flooded over quiet, the median of the pairs. The last column is the share of one processor that the service used,
without the processes that decode images. The goal is at most {GOAL} at the 99th percentile: {kept}
of {len(found)} floods met it in this run. {_load()}

{table(header, rows)}
"""


def _row(name: str, found: Compared) -> list[object]:
    sent = max(1, sum(found.codes.values()))
    codes = ", ".join(f"{code} {count / sent:.0%}" for code, count in found.codes.most_common(3)) or "none in a phase"
    quiet, flooded = ([each for phase in phases for each in phase] for phases in (found.quiet, found.flooded))
    ratios = [f"{found.ratio(share):.2f}" for share in (0.5, 0.99)]
    used = f"{found.used[False]:.0%} / {found.used[True]:.0%}"
    rate = f"{sum(found.codes.values()) / found.seconds:,.0f}"
    return [name, rate, codes, _pair(quiet), _pair(flooded), *ratios, used]


def _pair(values: list[float]) -> str:
    return f"{1e3 * percentile(values, 0.5):.1f} / {1e3 * percentile(values, 0.99):.1f}"


def _load() -> str:
    """Returns the machine's load: above its number of processors, a 99th percentile depends on scheduling."""
    count = len(os.sched_getaffinity(0))
    busy = "**Other programs kept the machine busy, so these figures are no measure of a free one.** "
    return (
        f"{busy if os.getloadavg()[1] > 2 * count else ''}The load average was {os.getloadavg()[1]:.1f}; "
        f"{platform.machine()}, Python {platform.python_version()}."
    )


def main() -> None:
    """Measures each flood and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="pairs of phases for each flood")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a phase")
    parser.add_argument("--only", help="part of a flood's name")
    parser.add_argument("--write", type=Path, help="document whose section is written")
    given = parser.parse_args()
    found = {}
    for name in FLOODS:
        if given.only and given.only not in name:
            continue
        with installation() as stack:  # its own, so that no flood finds what another left
            job = store_large_log(stack)
            found[name] = asyncio.run(compare(stack, name, job, given.rounds, given.seconds))
        print(*_row(name, found[name]), sep=" | ", flush=True)
    text = report(found, given.rounds, given.seconds)
    print(text)
    if given.write and not given.only:
        write_section(given.write, "isolation", text)


if __name__ == "__main__":
    main()
