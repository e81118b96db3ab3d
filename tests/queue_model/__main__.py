"""`make model-check`: checks the queue's promises for all interleavings within bounds, and random ones beyond them."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
import structlog

from queue_model.bounds import DEEP
from queue_model.clients import Bounds, World
from queue_model.explore import explore
from queue_model.machine import QueueMachine, run_random
from queue_model.mutations import MUTATIONS, find, small_graphs
from queue_model.replay import Replay, cover
from queue_model.scripts import RealQueue
from queue_model.specification import Limits
from sagittal.process.embedded import EmbeddedValkey

log = structlog.get_logger(__name__)

#: What stands around the figures in the document.
BEGIN, END = "<!-- figures of `make model-check` -->\n", "<!-- end of model-check -->\n"

#: Actions of one random schedule at most, before every client dies and the queue recovers.
STEPS = 40


@contextmanager
def server() -> Iterator[redis.Redis]:
    """Gives a client of a server with an append-only file, from which it can be loaded again."""
    options = ("--appendfsync", "no", "--enable-debug-command", "local")
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(folder, persist=True, options=options) as valkey:
        yield redis.Redis.from_url(valkey.url)


def main() -> int:
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=2000, help="number of random schedules")
    parser.add_argument("--transitions", type=int, help="most transitions that are replayed within each of the bounds")
    parser.add_argument("--seed", type=int, default=1, help="of the random schedules; equal seeds give equal schedules")
    parser.add_argument("--replay", help="a schedule that a failure printed, to be replayed alone, step by step")
    parser.add_argument("--write", type=Path, help="document in which the figures are replaced")
    given = parser.parse_args()
    with server() as client:
        if given.replay:
            return replay_aloud(client, given.replay.split("; "))
        rows = [check_bounds(client, title, bounds, given.transitions) for title, bounds in DEEP.items()]
        missed = find_mutations(client)
    began = time.monotonic()
    with server() as client:  # a new one, because restarts load its append-only file
        run_random(RealQueue(client, Limits()), schedules=given.schedules, steps=STEPS, number=given.seed)
    ran = time.monotonic() - began
    log.info("random", schedules=QueueMachine.schedules, actions=QueueMachine.actions, seconds=ran)
    if given.write and not missed:
        write(given.write, [*table(rows), *about_random(given.seed), *about_mutations()])
    return 1 if missed else 0


def replay_aloud(client: redis.Redis, schedule: Sequence[str]) -> int:
    """Replays a schedule and prints each answer. Raises Broken."""
    running = Replay(World.new(Bounds((), workers="abc", most_leases=2)), RealQueue(client, Limits()))
    for action in schedule:
        sys.stdout.write(f"{action}: {running.play(action)}\n")
    running.finish()
    sys.stdout.write("the specification and the scripts agree, and the queue recovers\n")
    return 0


def check_bounds(client: redis.Redis, title: str, bounds: Bounds, most: int | None) -> Sequence[object]:
    """Returns the figures of one exhaustive check. Raises Broken."""
    graph = explore(bounds)
    covered = cover(graph, RealQueue(client, Limits()), most=most)
    log.info(
        "checked", bounds=title, states=len(graph.edges), transitions=graph.transitions, replayed=covered.transitions
    )
    return (
        title,
        describe(bounds),
        len(graph.edges),
        graph.transitions,
        graph.schedules(),
        covered.transitions,
        covered.recoveries,
    )


def describe(bounds: Bounds) -> str:
    """Returns how much happens at most."""
    names = {"tick": "10 s pass", "die": "crash", "again": "call sent again"}
    counts = [(len(bounds.jobs), "job"), (len(bounds.workers), "worker")]
    sides = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts]
    return ", ".join([*sides, *(f"{most} x {names.get(kind, kind)}" for kind, most in bounds.budget)])


def find_mutations(client: redis.Redis) -> Sequence[str]:
    """Returns the titles of the faults that the check does not find."""
    graphs, missed = small_graphs(), []
    for mutation in MUTATIONS:
        broken = find(mutation, lambda change: RealQueue(client, Limits(), change=change), graphs)
        log.info("mutation", fault=mutation.title, found=str(broken).splitlines()[0] if broken else None)
        if broken is None:
            missed.append(mutation.title)
    return missed


def table(rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yields the figures of the exhaustive checks as Markdown."""
    yield "\n| bounds | at most | states | transitions | schedules | replayed | recoveries |\n"
    yield "| --- | --- | --- | --- | --- | --- | --- |\n"
    for title, bounds, *numbers in rows:
        yield f"| {title} | {bounds} | " + " | ".join(f"{number:,}" for number in numbers) + " |\n"


def about_random(number: int) -> Iterator[str]:
    """Yields how much was random."""
    ran = f"{QueueMachine.schedules:,} random schedules (seed {number}) with {QueueMachine.actions:,} actions"
    yield f"\nBeyond the bounds: {ran}.\n"


def about_mutations() -> Iterator[str]:
    """Yields the faults that were put into the scripts."""
    yield f"\nThe check found each of these {len(MUTATIONS)} faults when it was put into the scripts: "
    yield "; ".join(mutation.title for mutation in MUTATIONS) + ".\n\n"


def write(document: Path, lines: Sequence[str]) -> None:
    """Replaces the figures in a document."""
    before, _, rest = document.read_text().partition(BEGIN)
    document.write_text(before + BEGIN + "".join(lines) + END + rest.partition(END)[2])


if __name__ == "__main__":
    sys.exit(main())
