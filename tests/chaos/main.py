"""`make chaos`: breaks things for minutes on each server and writes the figures where docs/guarantees.md shows them."""

import argparse
import random
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog
from chaos.replies import run_replies
from chaos.run import Figures, run

log = structlog.get_logger(__name__)

#: Share of the time in which Redis answers with errors of our choice.
SHARE_OF_REPLIES = 0.25

#: What stands around the figures in the document.
BEGIN, END = "<!-- figures of `make chaos` -->\n", "<!-- end of figures -->\n"


def main() -> int:
    """Runs chaos on Valkey and, where it is installed, on Redis; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="seconds of faults, on all servers together")
    parser.add_argument("--seed", type=int, default=None, help="of the schedule; drawn where none is given")
    parser.add_argument("--write", type=Path, help="document in which the figures are replaced")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    servers = [None, *filter(None, [shutil.which("redis-server")])]
    if len(servers) == 1:
        log.warning("redis-server-missing", doing="running on Valkey alone")
    ran, violated = [], []
    for binary in servers:
        seconds = given.seconds / len(servers) * (1 - SHARE_OF_REPLIES)
        log.info("chaos", server=binary or "valkey", seconds=seconds, seed=seed)
        figures, violations = run(seconds=seconds, most=max(2 * seconds, 120.0), seed=seed, binary=binary)
        for_replies = given.seconds / len(servers) * SHARE_OF_REPLIES
        figures.replies = run_replies(seconds=for_replies, seed=seed, binary=binary)
        log.info("chaos-ran", **figures.as_dict())
        ran.append(figures)
        violated += violations
    if given.write and not violated:
        write(given.write, ran)
    return 1 if violated else 0


def write(document: Path, ran: Sequence[Figures]) -> None:
    """Replaces the figures in a document."""
    text = document.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    document.write_text(before + BEGIN + "".join(tables(ran)) + END + after)


def tables(ran: Sequence[Figures]) -> Iterator[str]:
    """Yields the figures as Markdown."""
    names = [f"{each.server} (seed {each.seed})" for each in ran]
    yield "\n" + _row(["", *names]) + _row(["---"] * (len(ran) + 1))
    for title, value in ROWS:
        yield _row([title, *(value(each) for each in ran)])
    yield "\n" + _row(["fault", *(each.server for each in ran)]) + _row(["---"] * (len(ran) + 1))
    for kind in sorted({kind for each in ran for kind in each.faults}):
        yield _row([kind, *(str(each.faults.get(kind, 0)) for each in ran)])
    yield "\n" + _row(["recovery", "times", "median", "99 %", "longest"]) + _row(["---"] * 5)
    for kind in ran[0].recovery:
        samples = sorted(sample for each in ran for sample in each.recovery[kind])
        if samples:
            worst = samples[min(len(samples) - 1, int(0.99 * len(samples)))]
            figures = (statistics.median(samples), worst, samples[-1])
            yield _row([kind, str(len(samples)), *(f"{each:.2f} s" for each in figures)])
    for each in ran:
        if each.without:
            yield f"\nOn {each.server} the network was not cut: {each.without}.\n"
    yield "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _mib(pair: tuple[int, int]) -> str:
    return " then ".join(f"{each / 2**20:.1f} MiB" for each in pair)


def _kib(pair: tuple[int, int]) -> str:
    return " then ".join(f"{each / 2**10:,.0f} KiB" for each in pair)


ROWS = (
    ("faults injected", lambda each: f"{sum(each.faults.values()):,}"),
    ("pairs of an error of Redis and an operation, each checked alone", lambda each: f"{each.replies[0]:,}"),
    ("jobs accepted", lambda each: f"{each.jobs:,}"),
    ("completed, with the answer of an undisturbed run", lambda each: f"{each.completed:,}"),
    ("cancelled by their callers", lambda each: f"{each.cancelled:,}"),
    ("attempts begun", lambda each: f"{each.attempts:,}"),
    ("events written", lambda each: f"{each.events:,}"),
    ("writes of workers that had lost their lease, all refused", lambda each: f"{each.refused_writes:,}"),
    ("**jobs lost**", lambda each: str(each.losses)),
    ("**jobs with an event twice, missing or out of order**", lambda each: str(each.duplicates)),
    ("**answers that differ**", lambda each: str(each.differences)),
    ("data in Redis before the first job, and after the last was deleted", lambda each: _kib(each.memory)),
    (
        "resident memory of a service, forked from a process with torch: after a third of the run, and at its end",
        lambda each: _mib(each.resident),
    ),
    ("whole run", lambda each: f"{each.seconds:.0f} s"),
)

if __name__ == "__main__":
    sys.exit(main())
