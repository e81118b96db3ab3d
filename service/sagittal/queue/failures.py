"""Maps each error of Redis to its meaning in one table: wait, refuse or fail. Errors to callers carry no secrets.

*Wait*: the condition passes by itself, as a failover does. The operation is retried with growing pauses until its
timeout, and then raises `Unavailable`. *Refuse*: an immediate retry does not help. The caller gets `Unavailable`, or
`Overloaded` if memory is full, with a retry delay; the message tells the operator the remedy. *Fail*: a wrong
configuration or a bug. The operation fails immediately, with the remedy. An error that is not in the table also fails,
as `QueueFailed`; it is counted, and logged with Redis's original message. No error ends a task or thread, because these
only see `SagittalError`.
"""

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from redis import exceptions as faults

from sagittal.core.errors import ArgumentRefused, Overloaded, QueueFailed, SagittalError, Unavailable
from sagittal.queue.settings import QueueSettings

#: Exceptions with which an attempt may fail.
FAILURES = (faults.RedisError, OSError)


class Meaning(enum.StrEnum):
    """Consequence of an error of Redis."""

    WAIT = "wait"
    REFUSE = "refuse"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Reply:
    """One kind of error reply of Redis."""

    name: str
    """Name in metrics and logs: Redis's error code, or a substitute."""
    pattern: str
    """Regular expression for the error's text, which begins with the code."""
    meaning: Meaning
    text: str
    """Cause and remedy."""
    error: type[SagittalError] = Unavailable
    """Error that callers of the service get."""
    reconnects: bool = False
    """Whether another server may be the primary now. The connection is then closed and its address resolved again."""


_CREDENTIALS = "SAGITTAL_QUEUE__USERNAME, SAGITTAL_QUEUE__PASSWORD"
WAIT, REFUSE, FAIL = Meaning

#: Every error with which Redis 7.0 to 8 and Valkey 8 to 9 may answer the queue. The first matching row applies.
REPLIES: tuple[Reply, ...] = (
    Reply("ARGUMENT", r"^ARGUMENT ", FAIL, "a script refused a value; nothing was written", error=ArgumentRefused),
    Reply("LOADING", r"^LOADING ", WAIT, "it is loading its data after a start"),
    Reply("READONLY", r"^READONLY ", WAIT, "the server is a replica now; another one is the primary", reconnects=True),
    Reply("MASTERDOWN", r"^MASTERDOWN ", WAIT, "the server is a replica that has lost its primary", reconnects=True),
    Reply("UNBLOCKED", r"^UNBLOCKED ", WAIT, "the server has just become a replica or a primary", reconnects=True),
    Reply(
        "NOREPLICAS",
        r"^NOREPLICAS ",
        WAIT,
        "fewer replicas follow than its min-replicas-to-write, or SAGITTAL_QUEUE__SYNCHRONOUS_REPLICAS, requires; "
        "start replicas, or lower it",
    ),
    Reply("BUSY", r"^BUSY ", WAIT, "a script has run longer than busy-reply-threshold; see SLOWLOG GET"),
    Reply("TRYAGAIN", r"^TRYAGAIN ", WAIT, "its cluster is moving keys to another node"),
    Reply("CLUSTERDOWN", r"^CLUSTERDOWN ", WAIT, "its cluster has no majority, or does not serve all slots"),
    Reply("NOSCRIPT", r"^NOSCRIPT ", WAIT, "its script cache is empty; the scripts are sent again"),
    Reply("EXECABORT", r"^EXECABORT ", WAIT, "it aborted a transaction"),
    Reply(
        "MAXCLIENTS",
        r"max number of clients",
        WAIT,
        "Redis has reached maxclients; raise it, or lower SAGITTAL_QUEUE__MAX_CONNECTIONS",
    ),
    Reply(
        "MISCONF",
        r"^MISCONF ",
        REFUSE,
        "it cannot write its data to disk, so it accepts no writes; free space on its volume (its log names the "
        "failure)",
    ),
    Reply(
        "OOM",
        r"\bOOM\b",
        REFUSE,
        "the queue's memory is full: try again later, give Redis more memory (maxmemory), or keep jobs for less time "
        "(retention_seconds, max_stored_bytes)",
        error=Overloaded,
    ),
    Reply(
        "DENIED",
        r"^DENIED ",
        FAIL,
        "it is in protected mode and answers only its own machine; give it a password or an ACL file, and give the "
        f"programs the credentials ({_CREDENTIALS})",
    ),
    Reply(
        "NOPASSWORD",
        r"without any password configured|no password is set",
        FAIL,
        "it received a password but has none configured; configure one there, or remove it from "
        "SAGITTAL_QUEUE__PASSWORD and SAGITTAL_QUEUE__URL",
    ),
    Reply(
        "NOAUTH",
        r"^(NOAUTH )?Authentication required|unauthenticated (multi)?bulk length",
        FAIL,
        "it requires credentials and received none; set SAGITTAL_QUEUE__PASSWORD, and SAGITTAL_QUEUE__USERNAME for a "
        "user of its ACL",
    ),
    Reply(
        "WRONGPASS",
        r"^WRONGPASS |invalid (username-password pair|password)",
        FAIL,
        "it does not accept these credentials; correct SAGITTAL_QUEUE__USERNAME and SAGITTAL_QUEUE__PASSWORD, and "
        "restart programs that have old ones",
    ),
    Reply(
        "NOPERM",
        r"^NOPERM |ACL failure in script|[Nn]o permissions|user executing the script can't",
        FAIL,
        "its ACL does not allow this user to {do}; give the user the rights at the end of docs/guarantees.md",
    ),
    Reply(
        "MOVED",
        r"^(MOVED|ASK|REDIRECT|CROSSSLOT) |non local key in a cluster",
        FAIL,
        "another node of its cluster has the queue's keys; set SAGITTAL_QUEUE__URL to that node (all keys are in one "
        "slot)",
    ),
    Reply(
        "UNKNOWNCOMMAND",
        r"unknown (sub)?command",
        FAIL,
        "it does not know a command of the queue; use Redis 7.0 or Valkey 8 or later, without renamed commands",
    ),
    Reply(
        "DAMAGED",
        r"^WRONGTYPE |not an integer|not a valid float|would overflow|user_script",
        FAIL,
        "a key has unexpected content, or a script has a bug; see the log for Redis's original message",
        error=QueueFailed,
    ),
)

#: A script's error for a wrong argument (`arguments.lua`); Redis appends where it was raised.
_ARGUMENT = re.compile(r"^ARGUMENT (?P<name>.+?) is (?P<rest>\".*\"; give .*?)(?:,? script: |$)", re.DOTALL)

#: Redis sent no answer, or none that can be parsed.
UNREACHABLE = Reply("UNREACHABLE", "", WAIT, "it does not answer")

#: Any other error. It ends nothing; the log and a metric report it.
UNKNOWN = Reply(
    "UNKNOWN",
    "",
    FAIL,
    "it answered with an unknown error; see the log for Redis's original message, and report it",
    error=QueueFailed,
)

#: An authentication error or missing right that Redis does not describe further.
_REFUSED = Reply("WRONGPASS", "", FAIL, "see the log of Redis for the reason")

_ROWS = tuple((re.compile(reply.pattern), reply) for reply in REPLIES)

#: Codes that redis-py removes from the text of an error, by exception class.
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
    """Returns the table row for an error of Redis or of the connection to it."""
    first = _row(error)
    if first is not None:
        return first
    for cause in _causes(error):
        # redis-py may raise a lost connection with the refusal as its cause.
        if (row := _row(cause)) is not None and row.meaning is FAIL:
            return row
    if isinstance(error, (faults.ConnectionError, faults.TimeoutError, faults.InvalidResponse, OSError)):
        return UNREACHABLE
    return UNKNOWN


def translate(error: Exception, settings: QueueSettings, *, accepted: bool = False) -> SagittalError:
    """Returns the SagittalError for an error of Redis.

    Args:
        error: The error of an operation.
        settings: Settings with the retry delays for callers.
        accepted: Whether the work is already accepted, as all work of workers is. It then waits for memory, and a
            refused argument is a bug of Sagittal.
    """
    reply = classify(error)
    if not accepted and (refused := _ARGUMENT.match(str(error))):
        return ArgumentRefused(f"{refused['name']} is {refused['rest']}", field=refused["name"])
    if reply.error is Overloaded and not accepted:
        return Overloaded(reply.text, retry_after=settings.overload_retry_after)
    if reply.error in (QueueFailed, ArgumentRefused):
        return QueueFailed(f"Redis failed ({reply.name}): {reply.text}", retry_after=None)
    if reply is UNREACHABLE:
        text = f"the queue cannot be reached ({type(error).__name__}): try again"
    elif reply.meaning is FAIL:
        text = f"Redis refuses the connection or command: {reply.text.format(do=_forbidden(str(error)))}"
    else:
        text = f"Redis is not available now ({reply.name}: {reply.text}): try again"
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
    """Yields the causes of an error, nearest first."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause


def _forbidden(text: str) -> str:
    if named := re.search(r"run the '([^']+)' command", text):
        return f"run '{named[1]}'"
    return "run a command of the queue's scripts" if "can't run" in text else "use the queue's keys or channels"
