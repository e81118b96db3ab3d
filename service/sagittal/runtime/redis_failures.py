"""What a failure of Redis means to a caller, and what the operator is to do: no addresses, names or secrets."""

import re
from collections.abc import Iterator

from redis import exceptions as faults

from sagittal.core.errors import Overloaded, SagittalError, Unavailable
from sagittal.runtime.settings import QueueSettings

#: What may pass by itself: the connection, a server that starts, a replica that is about to become the primary.
PASSING = (
    faults.ConnectionError,
    faults.TimeoutError,
    faults.BusyLoadingError,
    faults.ReadOnlyError,
    faults.TryAgainError,
    OSError,
)

#: What an attempt may fail with.
FAILURES = (faults.RedisError, OSError)

#: What Redis says where it refuses who we are or what we may do, and what that asks of the operator.
_REFUSALS = tuple(
    (re.compile(said), means)
    for said, means in (
        (
            r"^DENIED ",
            "it is in protected mode and answers its own machine alone; give it a password or an ACL file, and the "
            "programs the credentials (SAGITTAL_QUEUE__USERNAME, SAGITTAL_QUEUE__PASSWORD)",
        ),
        (
            r"without any password configured|no password is set",
            "it was given a password and has none; set one there, or take it out of SAGITTAL_QUEUE__PASSWORD and of "
            "SAGITTAL_QUEUE__URL",
        ),
        (
            r"^(NOAUTH )?Authentication required",
            "it wants credentials and was given none; set SAGITTAL_QUEUE__PASSWORD, and SAGITTAL_QUEUE__USERNAME for "
            "a user of its ACL",
        ),
        (
            r"invalid (username-password pair|password)",
            "it does not know these credentials; set SAGITTAL_QUEUE__USERNAME and SAGITTAL_QUEUE__PASSWORD right, and "
            "restart what still has old ones",
        ),
        (
            r"ACL failure in script|[Nn]o permissions|user executing the script can't",
            "its ACL does not let this user {do}; give the user the rights at the end of docs/guarantees.md",
        ),
    )
)

_CROWDED = "max number of clients reached"


def translate(error: Exception, settings: QueueSettings) -> SagittalError | None:
    """Returns our error for one of Redis's; None where it is a bug."""
    if isinstance(error, faults.ResponseError) and (isinstance(error, faults.OutOfMemoryError) or "OOM" in str(error)):
        return Overloaded(
            "the queue's memory is full: try again later, or give Redis more (maxmemory), or keep less "
            "(retention_seconds, max_stored_bytes)",
            retry_after=settings.overload_retry_after,
        )
    if why := refusal(error):
        return Unavailable(f"the queue's Redis refuses us: {why}", retry_after=settings.retry_after)
    if isinstance(error, PASSING):
        full = ": Redis has as many clients as its maxclients admits" if _CROWDED in str(error) else ""
        return Unavailable(
            f"the queue cannot be reached ({type(error).__name__}{full}): try again", retry_after=settings.retry_after
        )
    return None


def refusal(error: BaseException) -> str:
    """Returns why Redis refuses who we are or what we may do, and the remedy; empty where it does not."""
    for each in _chain(error):
        if not isinstance(each, faults.RedisError):
            continue
        for said, means in _REFUSALS:
            if said.search(str(each)):
                return means.format(do=_forbidden(str(each)))
        if isinstance(each, (faults.AuthenticationError, faults.NoPermissionError)):
            return "its log says more"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it came from: redis-py may hide a refusal behind a lost connection."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _forbidden(text: str) -> str:
    if named := re.search(r"run the '([^']+)' command", text):
        return f"run '{named[1]}'"
    return "run a command of the queue's scripts" if "can't run" in text else "use the queue's keys or channels"
