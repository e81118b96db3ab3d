"""One chaos run: undisturbed answers first, then faults under load, then peace, and what must hold."""

import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
from chaos.faults import Schedule
from chaos.invariants import (
    Findings,
    delete_all,
    grown,
    judge,
    kept_bytes,
    leftovers,
    question_of,
    read_journals,
    read_logs,
    recoveries,
    told,
)
from chaos.load import Callers
from chaos.questions import PICTURE, SPECS
from chaos.world import World

log = structlog.get_logger(__name__)

#: Pause between two faults, in seconds.
BREATH = 0.4


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a run did and found."""

    server: str
    seed: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    replies: tuple[int, int] = (0, 0)
    """Pairs of an error of Redis and an operation that were met, and that were tried."""
    jobs: int = 0
    completed: int = 0
    cancelled: int = 0
    attempts: int = 0
    events: int = 0
    refused_writes: int = 0
    """Writes of workers that had lost their lease, all refused."""
    refused_calls: int = 0
    losses: int = 0
    duplicates: int = 0
    differences: int = 0
    recovery: dict[str, list[float]] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)
    """Bytes of data in Redis before the first job and after the last was deleted."""
    resident: tuple[int, int] = (0, 0)
    """Bytes that a service holds which was not killed, after the first third of the run and at its end."""
    without: str = ""
    """Why the network was not cut; empty where it was."""

    def as_dict(self) -> dict[str, object]:
        """Returns plain values."""
        return asdict(self)


def run(*, seconds: float, most: float, seed: int, binary: str | None = None) -> tuple[Figures, list[str]]:
    """Runs chaos for at least `seconds` and until each fault was injected, but for no more than `most`.

    Returns the figures, and every violation of what must hold. What the processes wrote is kept where there is one.
    """
    directory = Path(tempfile.mkdtemp(prefix="sagittal-chaos-"))
    began = time.monotonic()
    figures = Figures(server="Redis" if binary else "Valkey", seed=seed, seconds=0.0)
    violations: list[str] = []
    try:
        with World(directory, seed=seed, binary=binary) as world:
            violations = _run_in(world, figures, seconds, most)
    except BaseException:
        violations.append("the run itself broke")
        raise
    finally:
        figures.seconds = time.monotonic() - began
        if violations:
            log.error("chaos-violations", kept=str(directory), seed=seed, violations=violations)
        else:
            shutil.rmtree(directory)
    return figures, violations


def _run_in(world: World, figures: Figures, seconds: float, most: float) -> list[str]:
    world.wait_until_ready()
    with world.client() as client:
        answers = _undisturbed(world)
        before, figures.memory = leftovers(world), (kept_bytes(world), 0)
        log.info("chaos-begins", answers=len(answers), kept=str(world.directory))
        callers, schedule = Callers(world, 6), Schedule(world)
        schedule.deal_fates()
        for worker in world.workers:
            world.restart_killed(worker)
        callers.start()
        try:
            steady = _disturb(world, schedule, seconds, most)
            _make_peace(world)
        finally:
            callers.finish()
        log.info("chaos-ends", faults=schedule.dealt, deaths=len(world.deaths))
        job_ids = {job.job_id for job in client.list()}
        found = judge(read_logs(client, job_ids), callers.seen, answers)
        figures.resident = (steady, _resident(world.await_start(world.services[1])))
        found.wrong += delete_all(client, job_ids)
        found.wrong += world.fallen
        _sum_up(world, schedule, callers, found, figures)
    found.wrong += [f"key left over: {key}" for key in sorted(leftovers(world) - before)]
    figures.memory = (figures.memory[0], kept_bytes(world))
    found.wrong += grown(*figures.memory)
    found.wrong += _end(world)
    return found.all


def _undisturbed(world: World) -> dict[tuple[str, int], list[bytes]]:
    """Returns the answer to each question, and leaves no job behind."""
    with world.client() as client:
        for spec in SPECS:
            client.explain(PICTURE, model="left", target=1, cache="bypass", **spec)
        job_ids = {job.job_id for job in client.list()}
        logs = read_logs(client, job_ids)
        delete_all(client, job_ids)
    return {question_of(each): told(each) for each in logs.values()}


def _disturb(world: World, schedule: Schedule, seconds: float, most: float) -> int:
    """Injects faults until the time is up; returns the resident bytes of the steady service on the way."""
    began, steady = time.monotonic(), 0
    while (past := time.monotonic() - began) < most and (past < seconds or not schedule.once_through):
        schedule.deal_fates()
        schedule.next()
        time.sleep(BREATH)
        if not steady and past > seconds / 3:
            steady = _resident(world.await_start(world.services[1]))
    return steady


def _make_peace(world: World) -> None:
    """Ends every life that still has a fate before it: the next ones have none."""
    for program in (*world.workers, world.services[0]):
        program.fates.clear()
        world.restart_killed(program)
    world.wait_until_ready()


def _sum_up(world: World, schedule: Schedule, callers: Callers, found: Findings, figures: Figures) -> None:
    journals = read_journals(world.directory)
    met = [line for lines in journals.values() for line in lines if line["what"] == "fault"]
    for kind in [fault.kind for fault in schedule.faults] + [_fate_name(line) for line in met]:
        figures.faults[kind] = figures.faults.get(kind, 0) + 1
    for act in ("cancel", "leave", "stall", "crash"):
        figures.faults[f"caller: {act}"] = callers.seen.acts.get(act, 0)
    figures.jobs, figures.attempts = len(found.logs), found.attempts
    figures.completed, figures.cancelled = found.ended_as("completed"), found.ended_as("cancelled")
    figures.events = sum(map(len, found.logs.values()))
    figures.losses, figures.duplicates, figures.differences = map(len, (found.lost, found.duplicated, found.different))
    figures.refused_writes = sum(line["what"] == "refused" for lines in journals.values() for line in lines)
    figures.refused_calls, figures.without = callers.seen.refusals, world.no_segment
    jobs = [s for death in world.deaths for s in recoveries(journals.get(death.life, []), death.at, found.logs)]
    times = sorted(event.time.ToNanoseconds() / 1e9 for each in found.logs.values() for event in each)
    killed = [fault.mended for fault in schedule.faults if fault.kind == "Redis killed and restarted"]
    figures.recovery = {
        "a job whose worker was killed or stopped runs again": jobs,
        "the first event after Redis is back": [min((t for t in times if t > m), default=m) - m for m in killed],
        "a broken stream resumes": callers.seen.resumed,
    }


def _fate_name(line: dict[str, object]) -> str:
    verb = "stopped longer than a lease" if line["signal"] == "SIGSTOP" else "killed"
    return f"process {verb}: {str(line['point']).replace('_', ' ')}"


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def _end(world: World) -> list[str]:
    """Ends every program as an operator would; returns which did not end well."""
    wrong = []
    for program in (*world.workers, *world.services):
        status = world.end(program)
        if status != 0:
            wrong.append(f"{program.life} ended with status {status} on SIGTERM")
    return wrong
