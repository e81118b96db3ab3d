"""What each error of Redis means, in one table: wait, refuse, or fail. No addresses, names or secrets reach callers.

*Wait*: it passes by itself, as a failover does. The operation is tried again with a growing pause until its time is
up, and is then `Unavailable`. *Refuse*: trying again at once does not help; the caller gets `Unavailable`, or
`Overloaded` if memory is full, with a time to wait, and the operator the remedy. *Fail*: a wrong configuration or a
bug; the operation fails at once with the remedy. An error that the table does not know fails too, as `QueueFailed`: it
is counted, and logged in Redis's own words. None of them ends a task or a thread, which see `SagittalError` only.
"""

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from redis import exceptions as faults

from sagittal.core.errors import ArgumentRefused, Overloaded, QueueFailed, SagittalError, Unavailable
from sagittal.queue.settings import QueueSettings

#: What an attempt may fail with.
FAILURES = (faults.RedisError, OSError)


class Meaning(enum.StrEnum):
    """What follows from an error of Redis."""

    WAIT = "wait"
    REFUSE = "refuse"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Reply:
    """One kind of error that Redis answers with."""

    name: str
    """In metrics and logs: Redis's own code, or what stands for it."""
    pattern: str
    """Finds it in the error's text, which begins with the code."""
    meaning: Meaning
    text: str
    """What it means, and the remedy."""
    error: type[SagittalError] = Unavailable
    """What callers of the service get."""
    reconnects: bool = False
    """Whether another server may be the primary now: the connection is closed, and its address is resolved again."""


_CREDENTIALS = "SAGITTAL_QUEUE__USERNAME, SAGITTAL_QUEUE__PASSWORD"
WAIT, REFUSE, FAIL = Meaning

#: Every error that Redis 7.0 to 8 and Valkey 8 to 9 answer the queue with. The first row that fits counts.
REPLIES: tuple[Reply, ...] = (
    Reply("ARGUMENT", r"^ARGUMENT ", FAIL, "a script refuses a value; nothing was written", error=ArgumentRefused),
    Reply("LOADING", r"^LOADING ", WAIT, "it is reading its data after a start"),
    Reply("READONLY", r"^READONLY ", WAIT, "a replica answers; another server is the primary now", reconnects=True),
    Reply("MASTERDOWN", r"^MASTERDOWN ", WAIT, "a replica answers that has lost its primary", reconnects=True),
    Reply("UNBLOCKED", r"^UNBLOCKED ", WAIT, "it has just become a replica, or a primary", reconnects=True),
    Reply(
        "NOREPLICAS",
        r"^NOREPLICAS ",
        WAIT,
        "fewer replicas are connected than its min-replicas-to-write asks for; start them, or lower it",
    ),
    Reply("BUSY", r"^BUSY ", WAIT, "a script has run for longer than its busy-reply-threshold; see SLOWLOG GET"),
    Reply("TRYAGAIN", r"^TRYAGAIN ", WAIT, "it is moving keys to another node"),
    Reply("CLUSTERDOWN", r"^CLUSTERDOWN ", WAIT, "its cluster has no majority, or serves not all slots"),
    Reply("NOSCRIPT", r"^NOSCRIPT ", WAIT, "it has forgotten its scripts, and is sent them again"),
    Reply("EXECABORT", r"^EXECABORT ", WAIT, "it gave a transaction up"),
    Reply(
        "MAXCLIENTS",
        r"max number of clients",
        WAIT,
        "Redis has as many clients as its maxclients admits; raise it, or lower SAGITTAL_QUEUE__MAX_CONNECTIONS",
    ),
    Reply(
        "MISCONF",
        r"^MISCONF ",
        REFUSE,
        "it cannot write its data to disk, and takes no writes until it can; free space on its volume (its log says "
        "what it cannot do)",
    ),
    Reply(
        "OOM",
        r"\bOOM\b",
        REFUSE,
        "the queue's memory is full: try again later, or give Redis more (maxmemory), or keep less "
        "(retention_seconds, max_stored_bytes)",
        error=Overloaded,
    ),
    Reply(
        "DENIED",
        r"^DENIED ",
        FAIL,
        "it is in protected mode and answers its own machine alone; give it a password or an ACL file, and the "
        f"programs the credentials ({_CREDENTIALS})",
    ),
    Reply(
        "NOPASSWORD",
        r"without any password configured|no password is set",
        FAIL,
        "it was given a password and has none; set one there, or take it out of SAGITTAL_QUEUE__PASSWORD and of "
        "SAGITTAL_QUEUE__URL",
    ),
    Reply(
        "NOAUTH",
        r"^(NOAUTH )?Authentication required|unauthenticated (multi)?bulk length",
        FAIL,
        "it wants credentials and was given none; set SAGITTAL_QUEUE__PASSWORD, and SAGITTAL_QUEUE__USERNAME for a "
        "user of its ACL",
    ),
    Reply(
        "WRONGPASS",
        r"^WRONGPASS |invalid (username-password pair|password)",
        FAIL,
        "it does not know these credentials; set SAGITTAL_QUEUE__USERNAME and SAGITTAL_QUEUE__PASSWORD right, and "
        "restart what still has old ones",
    ),
    Reply(
        "NOPERM",
        r"^NOPERM |ACL failure in script|[Nn]o permissions|user executing the script can't",
        FAIL,
        "its ACL does not let this user {do}; give the user the rights at the end of docs/guarantees.md",
    ),
    Reply(
        "MOVED",
        r"^(MOVED|ASK|REDIRECT|CROSSSLOT) |non local key in a cluster",
        FAIL,
        "another node of its cluster has the queue's keys; point SAGITTAL_QUEUE__URL at the node that has them (all "
        "are in one slot)",
    ),
    Reply(
        "UNKNOWNCOMMAND",
        r"unknown (sub)?command",
        FAIL,
        "it does not know a command of the queue; run Redis 7.0 or Valkey 8 or later, without renamed commands",
    ),
    Reply(
        "DAMAGED",
        r"^WRONGTYPE |not an integer|not a valid float|would overflow|user_script",
        FAIL,
        "a key does not hold what the queue wrote there, or a script has a bug; see the log for Redis's own words",
        error=QueueFailed,
    ),
)

#: What a script says of an argument that it does not take (`arguments.lua`); Redis adds where it was raised.
_ARGUMENT = re.compile(r"^ARGUMENT (?P<name>.+?) is (?P<rest>\".*\"; give .*?)(?:,? script: |$)", re.DOTALL)

#: No answer, or none that can be read.
UNREACHABLE = Reply("UNREACHABLE", "", WAIT, "it does not answer")

#: Any other error: it ends nothing, and the log and a metric tell of it.
UNKNOWN = Reply(
    "UNKNOWN",
    "",
    FAIL,
    "it answered with an error that Sagittal does not know; see the log for Redis's own words, and report it",
    error=QueueFailed,
)

#: Credentials or rights that Redis does not name further.
_REFUSED = Reply("WRONGPASS", "", FAIL, "its log says more")

_ROWS = tuple((re.compile(reply.pattern), reply) for reply in REPLIES)

#: Codes that redis-py takes off the text of an error, by its class.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (faults.BusyLoadingError, "LOADING"),
    (faults.ReadOnlyError, "READONLY"),
    (faults.MasterDownError, "MASTERDOWN"),
    (faults.ClusterDownError, "CLUSTERDOWN"),
    (faults.TryAgainError, "TRYAGAIN"),
    (faults.NoScriptError, "NOSCRIPT"),
    (faults.ExecAbortError, "EXECABORT"),
    (faults.OutOfMemoryError, "OOM"),
    (faults.NoPermissionError, "NOPERM"),
    (faults.MovedError, "MOVED"),
    (faults.AskError, "ASK"),
    (faults.ClusterCrossSlotError, "CROSSSLOT"),
)


def classify(error: BaseException) -> Reply:
    """Returns what an error of Redis, or of the connection to it, means."""
    first = _row(error)
    if first is not None:
        return first
    for cause in _causes(error):
        # redis-py may hide a refusal behind a lost connection.
        if (row := _row(cause)) is not None and row.meaning is FAIL:
            return row
    if isinstance(error, (faults.ConnectionError, faults.TimeoutError, faults.InvalidResponse, OSError)):
        return UNREACHABLE
    return UNKNOWN


def translate(error: Exception, settings: QueueSettings, *, accepted: bool = False) -> SagittalError:
    """Returns our error for one of Redis's.

    Args:
        error: What an operation failed with.
        settings: Say how long callers are to wait.
        accepted: Whether the work is accepted already, as all of a worker's is: it then waits for room, and a value
            of it that is refused is a bug of ours.
    """
    reply = classify(error)
    if not accepted and (refused := _ARGUMENT.match(str(error))):
        return ArgumentRefused(f"{refused['name']} is {refused['rest']}", field=refused["name"])
    if reply.error is Overloaded and not accepted:
        return Overloaded(reply.text, retry_after=settings.overload_retry_after)
    if reply.error in (QueueFailed, ArgumentRefused):
        return QueueFailed(f"the queue's Redis failed ({reply.name}): {reply.text}", retry_after=None)
    if reply is UNREACHABLE:
        text = f"the queue cannot be reached ({type(error).__name__}): try again"
    elif reply.meaning is FAIL:
        text = f"the queue's Redis refuses us: {reply.text.format(do=_forbidden(str(error)))}"
    else:
        text = f"the queue's Redis cannot be used now ({reply.name}: {reply.text}): try again"
    return Unavailable(text, retry_after=settings.retry_after)


def _row(error: BaseException) -> Reply | None:
    if not isinstance(error, faults.RedisError):
        return None
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "")
    text = str(error) if str(error).startswith(code) else f"{code} {error}"
    found = next((reply for pattern, reply in _ROWS if pattern.search(text)), None)
    if found is None and isinstance(error, (faults.AuthenticationError, faults.AuthorizationError)):
        return _REFUSED
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields what an error came from."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _forbidden(text: str) -> str:
    if named := re.search(r"run the '([^']+)' command", text):
        return f"run '{named[1]}'"
    return "run a command of the queue's scripts" if "can't run" in text else "use the queue's keys or channels"
