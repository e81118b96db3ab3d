"""The queue's Lua scripts under a controlled clock, called and read in terms of the specification.

The scripts run as they are. A prelude in front of each answers `TIME` from a key, and records expiries in another one
instead of setting them, so that no real time passes for the queue.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from queue_scripts import plain_job
from redis.client import Pipeline

from queue_model.clients import Call
from queue_model.specification import Ending, Event, Limits, Taken
from sagittal.core.errors import from_status
from sagittal.core.jobs import Lane, NewJob
from sagittal.queue.scripts import load_script, parse_lease, root_key, submit_arguments
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import Ending as RealEnding
from sagittal.queue.sweep import end_arguments, parse_endings, parse_sweep, sweep_arguments
from sagittal.v1 import explanation_pb2

PRELUDE = """
local redis = setmetatable({}, {__index = redis})
local function controlled(plain)
  return function(command, key, ...)
    local given, seconds, plain_arguments = {...}, nil, {}
    if command == 'TIME' then return {plain('GET', 'clock'), '0'} end
    if command == 'EXPIRE' then plain('HSET', 'expiries', key, plain('GET', 'clock') + given[1]) return 1 end
    if command ~= 'SET' then return plain(command, key, ...) end
    plain('HDEL', 'expiries', key)
    local i = 1
    while i <= #given do
      if given[i] == 'EX' or given[i] == 'PX' then
        seconds = given[i + 1] / (given[i] == 'PX' and 1000 or 1)
        i = i + 1
      else
        plain_arguments[#plain_arguments + 1] = given[i]
      end
      i = i + 1
    end
    local answer = plain('SET', key, unpack(plain_arguments))
    if answer and seconds then plain('HSET', 'expiries', key, plain('GET', 'clock') + seconds) end
    return answer
  end
end
redis.call, redis.pcall = controlled(redis.call), controlled(redis.pcall)
"""

#: Deletes what has expired.
EXPIRE = """
local flat = redis.call('HGETALL', 'expiries')
for i = 1, #flat, 2 do
  if tonumber(flat[i + 1]) <= tonumber(ARGV[1]) then
    redis.call('DEL', flat[i])
    redis.call('HDEL', 'expiries', flat[i])
  end
end
"""

#: Returns all keys with their values.
DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = key
  found[#found + 1] = redis.call('DUMP', key)
end
return found
"""

#: What the clock says first, in seconds since the epoch.
START = 1_700_000_000

NONCES = itertools.count()


@dataclass(frozen=True)
class Saved:
    """The content of a server, by key, and what the clients know of it."""

    values: Mapping[bytes, bytes]
    now: int
    tokens: Mapping[tuple[int, int], str]
    nonces: Mapping[Any, Any]


class RealQueue:
    """A queue on a server of its own, whose scripts are called one by one."""

    def __init__(self, client: redis.Redis, limits: Limits, *, change: Callable[[str], str] = str) -> None:
        """Constructs an empty queue; `change` may break a script's text on purpose."""
        self.client, self._change = client, change
        self.settings = QueueSettings(
            lease_seconds=limits.lease_seconds,
            cache_seconds=limits.cache_seconds,
            max_attempts=limits.max_attempts,
            heartbeat_seconds=1,
            absent_share=1,
        )
        self.root = root_key(self.settings)
        self._digests: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self.client.flushall()
        self._restoring: Saved | None = None
        self.expiries: Mapping[int, int] = {}
        self.now = START
        self.client.set("clock", self.now)
        self.tokens: dict[tuple[int, int], str] = {}
        self.nonces: dict[Call, Any] = {}

    def save(self) -> "Saved":
        """Returns all that is stored, and what the clients know of it."""
        flat = self.client.eval(DUMP, 0)
        return Saved(dict(zip(flat[::2], flat[1::2], strict=True)), self.now, dict(self.tokens), dict(self.nonces))

    def restore(self, saved: "Saved") -> None:
        """Returns to what was saved, with the next call."""
        self.now, self.tokens, self.nonces = saved.now, dict(saved.tokens), dict(saved.nonces)
        self._restoring = saved

    def tick(self, seconds: int) -> None:
        """Lets time pass."""
        self.now += seconds
        with self._pipeline() as pipe:
            pipe.set("clock", self.now).eval(EXPIRE, 0, self.now)
            pipe.execute()

    def restart(self) -> None:
        """Loses what a restart loses: the scripts, and what is not in the append-only file."""
        self._pipeline().execute()
        self.client.execute_command("DEBUG", "LOADAOF")
        self.client.script_flush()
        self._digests.clear()

    def script(self, name: str, *arguments: bytes | str | int | float) -> Any:
        """Calls a script."""
        self._load(name)
        with self._pipeline() as pipe:
            pipe.evalsha(self._digests[name], 1, self.root, *arguments)
            return pipe.execute()[-1]

    def _pipeline(self) -> Pipeline:
        """Returns a pipeline that first restores what is to be restored."""
        pipe, saved, self._restoring = self.client.pipeline(transaction=False), self._restoring, None
        if saved:
            pipe.flushall()
            for key, value in saved.values.items():
                pipe.restore(key, 0, value)
        return pipe

    def _load(self, name: str) -> None:
        if name not in self._digests:
            shebang, rest = load_script(name).text.split("\n", 1)
            self._digests[name] = self.client.script_load(self._change(f"{shebang}{PRELUDE}{rest}"))

    # Calls, in terms of the specification.

    def call(self, call: Call, *, again: bool) -> Any:
        """Makes a call and returns its answer in terms of the specification; `again` sends the same call."""
        name, *arguments = call
        return getattr(self, f"_{name}")(*arguments, again=again)

    def _submit(self, number: int, content: str, deadline: int | None, *, again: bool) -> str:
        return str(
            self.script("submit", *submit_arguments(self._job(number, content, deadline), b"", self.settings))[
                0
            ].decode()
        )

    def _job(self, number: int, content: str, deadline: int | None) -> NewJob:
        tenant, _, key = content.partition(":")
        return plain_job(
            job_id=name_of(number),
            tenant=tenant or "nobody",
            content_key=key,
            request=name_of(number).encode() if not content else b"request",
            deadline=None if deadline is None else float(START + deadline),
            lane=Lane.INTERACTIVE,
        )

    def _retry(self, number: int, content: str, dead: int, *, again: bool) -> str:
        request = self.script("request", name_of(dead))
        if not request:
            raise AssertionError(f"5: the request of job {dead} is lost")
        return self._submit(number, content, None, again=again)

    def _cancel(self, number: int, *, again: bool) -> str:
        event = explanation_pb2.ExplanationEvent()
        event.cancelled.reason = "asked"
        view = self.script("cancel", name_of(number), "asked", event.SerializeToString())
        return str(view[2].decode()) if view else "unknown"

    def _delete(self, number: int, *, again: bool) -> str:
        return str(self.script("delete", name_of(number), self._nonce(("delete", number), again=again)).decode())

    def _nonce(self, call: Call, *, again: bool) -> str:
        if not again:
            self.nonces[call] = f"nonce{next(NONCES)}"
        return str(self.nonces[call])

    def _lease(self, worker: str, busy: bool, *, again: bool) -> Taken | Ending | str:
        nonce = self._nonce(("lease", worker), again=again)
        settings = self.settings
        answer = self.script("lease", worker, nonce, settings.lease_seconds, 5, "1" if busy else "", "", "model@1")
        if answer[0] == b"end":
            return self._ending(next(iter(parse_endings(answer[1:]))))
        if answer[0] != b"lease":
            return str(answer[0].decode())
        lease = parse_lease(answer)
        return Taken(
            number_of(lease.job.job_id),
            self._number_of_token(number_of(lease.job.job_id), str(lease.token)),
            lease.job.attempt,
            lease.alone,
            (lease.checkpoint or b"").decode(),
        )

    def _number_of_token(self, run: int, real: str) -> int:
        """Returns the specification's number for a token: the first of an execution is 1, the next higher one is 2."""
        known = {each: number for (its_run, number), each in self.tokens.items() if its_run == run}
        if int(real) == 0:
            return 0
        if real not in known:
            if known and int(real) <= max(map(int, known)):
                raise AssertionError(f"2: token {real} of execution {run} is not higher than earlier ones")
            self.tokens[run, len(known) + 1] = real
            return len(known) + 1
        return known[real]

    def _real_token(self, run: int, token: int) -> str:
        return self.tokens[run, token] if token else "0"

    def _append(self, run: int, token: int, batch: int, events: Sequence[Event], *, again: bool) -> str:
        bounds = (2**20, 2**30, 2**29)
        return self._write("append", run, token, batch, *bounds, *map(encode, events))

    def _checkpoint(self, run: int, token: int, checkpoint: str, *, again: bool) -> str:
        return self._write("checkpoint", run, token, checkpoint)

    def _settle(self, run: int, token: int, state: str, events: Sequence[Event], *, again: bool) -> str:
        about = (state, self.settings.cache_seconds, 2**20, 2**30, 2**29, 0, 0, "")
        return self._write("settle", run, token, *about, *map(encode, events))

    def _write(self, name: str, run: int, token: int, *arguments: bytes | str | int | float) -> str:
        return str(self.script(name, name_of(run), self._real_token(run, token), *arguments).decode())

    def _release(self, run: int, token: int, *, again: bool) -> tuple[str, Ending | None]:
        verdict, *ending = self.script("release", name_of(run), self._real_token(run, token))
        return verdict.decode(), self._ending(next(iter(parse_endings(ending)))) if ending else None

    def _heartbeat(self, run: int, token: int, *, again: bool) -> str:
        [answer] = self.script("heartbeat", self.settings.lease_seconds, name_of(run), self._real_token(run, token))
        return str(answer.decode().partition(":")[0])

    def _sweep(self, *, again: bool, audit: bool = False) -> list[Ending]:
        swept = parse_sweep(self.script("sweep", *sweep_arguments(self.settings, audit=audit)))
        if swept.quarantined:
            raise AssertionError(f"the audit found damage: {swept.quarantined}")
        return [self._ending(each) for each in swept.endings]

    def audit(self) -> list[Ending]:
        """Sweeps, and raises if counts and indexes do not agree with the jobs."""
        return self._sweep(again=False, audit=True)

    def _ending(self, real: RealEnding) -> Ending:
        number = number_of(real.job_id)
        run = number
        if real.scope == "job":
            run = number_of((self.client.hget(f"{self.root}job:{real.job_id}", "run") or b"").decode())
        reason = "dead-lettered" if real.reason == "buried" else real.reason  # the code on the wire
        ending = Ending(reason, real.scope, number, self._number_of_token(run, real.token))
        self.nonces[ending] = real
        return ending

    def _end(self, ending: Ending, *, again: bool) -> bool:
        return self.script("end", *end_arguments(self.nonces[ending], START)) is not None

    # Reading jobs and their events.

    def observe(self, numbers: Sequence[int]) -> Mapping[int, Any]:
        """Returns state, attempt, reason and events of jobs; None for those that do not exist."""
        for name in ("get", "read"):
            self._load(name)
        with self._pipeline() as pipe:
            for number in numbers:
                pipe.evalsha(self._digests["get"], 1, self.root, name_of(number))
                pipe.evalsha(self._digests["read"], 1, self.root, name_of(number), 0, 1000, 2**24, "")
            pipe.zrange(f"{self.root}leases", 0, -1, withscores=True)
            *answers, leases = pipe.execute()[-2 * len(numbers) - 1 :]
        self.expiries = {number_of(run.decode()): round(until) - START for run, until in leases}
        return {number: _seen(number, *answers[2 * place : 2 * place + 2]) for place, number in enumerate(numbers)}


def _seen(number: int, view: Sequence[bytes] | None, page: Sequence[bytes] | None) -> Any:
    if not view or not page:
        return None
    sequences = [int(each) for each in page[5::2]]
    if sequences != list(range(1, len(sequences) + 1)) or int(view[14]) != len(sequences):
        raise AssertionError(f"7: the events of job {number} are numbered {sequences}, and the last is {view[14]!r}")
    events = tuple(decode(each) for each in page[6::2])
    return view[2].decode(), int(view[12]), view[16].decode(), bool(page[0]), events


def name_of(number: int) -> str:
    return f"job-{number:03d}"


def number_of(name: str) -> int:
    return int(name.removeprefix("job-"))


def encode(event: Event) -> str:
    return f"{event.kind}{event.writer}/{event.text}"


REASONS = {"DEADLINE_PASSED": "expired", "JOB_BURIED": "dead-lettered"}


def decode(element: bytes) -> Event:
    """Returns an event of a log as the specification has it."""
    kind, payload = element[:1].decode(), element[1:]
    if kind == "T":
        event = explanation_pb2.ExplanationEvent.FromString(payload)
        failed = event.HasField("failed")
        return Event(kind, 0, REASONS[from_status(event.failed).reason] if failed else "cancelled")
    written = re.fullmatch(rb"(\d+)/(.*)", payload)
    if written:
        return Event(kind, int(written[1]), written[2].decode())
    accepted = explanation_pb2.ExplanationEvent.FromString(payload)  # with its position in the queue
    return Event(kind, 0, "accepted" if accepted.WhichOneof("event") in (None, "accepted") else "unknown")
