"""Each error of Redis as the answer to each operation alone, in bursts, one pair after another until time is up."""

import random
import tempfile
import time
from itertools import product
from pathlib import Path

import structlog
from e2e_stack import free_port
from faulty_redis import OPERATIONS, FaultyRedis
from redis_replies import SAMPLES
from whole_stack import Stack

from sagittal.process.embedded import EmbeddedValkey

log = structlog.get_logger(__name__)

#: Most answers of one kind in a row; an operation of the service is tried four times.
LONGEST_BURST = 6


def run_replies(*, seconds: float, seed: int, binary: str | None = None) -> tuple[int, int]:
    """Checks every promise after each pair; returns the pairs that were met, and all that were tried.

    Raises:
        AssertionError: a promise was broken.
    """
    chance, port = random.Random(seed), free_port()
    until, met, tried = time.monotonic() + seconds, 0, 0
    with tempfile.TemporaryDirectory() as directory, EmbeddedValkey(port=port, binary=binary):
        proxy = FaultyRedis(port)
        stack = Stack(Path(directory), of_service=proxy.url, of_worker=proxy.url, direct=f"redis://127.0.0.1:{port}/0")
        try:
            pairs: list[tuple[str, str]] = []
            while time.monotonic() < until:
                if not pairs:
                    pairs = list(product(SAMPLES, sorted(OPERATIONS)))
                    chance.shuffle(pairs)
                reply, operation = pairs.pop()
                burst = chance.randint(1, LONGEST_BURST)
                log.debug("chaos-reply", reply=reply, operation=operation, burst=burst)
                proxy.arm(chance.choice(SAMPLES[reply]), [operation], times=burst)
                stack.use()
                tried, met = tried + 1, met + bool(proxy.hits)
                proxy.disarm()
                stack.check_health()
        finally:
            stack.close()
            proxy.close()
    return met, tried
