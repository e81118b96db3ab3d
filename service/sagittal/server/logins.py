"""Unknown tokens, limited for each address: a caller that guesses gets a few tries, and then has to wait.

A right token never waits: the limit is asked only about unknown ones. So nobody is locked out by others behind the same
proxy, and what stands against guessing is the length of a token. The limit keeps a misconfigured or hostile caller
from filling the log, and tells its operator.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from urllib.parse import unquote

import structlog

from sagittal.core.errors import Unauthenticated
from sagittal.server.settings import LoginSettings

#: Bits of an IPv6 address that count: one customer of a network has all the rest.
_IPV6_PREFIX = 64

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Peer:
    """What is remembered of an address."""

    tries: float
    """Wrong tokens that it may still send."""
    seen: float
    """When `tries` was true, on the clock."""


class FailedLogins:
    """A bucket of tries for each address, of a bounded number of addresses."""

    def __init__(self, settings: LoginSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def failed(self, peer: str) -> None:
        """Counts an unknown token. Raises Unauthenticated if the address has had its tries."""
        address = address_of(peer)
        known = self._refilled(address)
        if known.tries < 1:
            wait = (1 - known.tries) * self._seconds_for_a_try
            raise Unauthenticated(
                f"too many unknown tokens came from your address: try again in {wait:.0f} s, or send a known one",
                retry_after=wait,
            )
        known.tries -= 1
        if known.tries < 1:
            _log.warning("logins-limited", address=address, attempts=self._settings.attempts)

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._peers)

    @property
    def _seconds_for_a_try(self) -> float:
        return self._settings.window / self._settings.attempts

    def _refilled(self, address: str) -> _Peer:
        """Returns what is known of an address by now; the one longest unheard of makes room for a new one."""
        now, most = self._clock(), float(self._settings.attempts)
        known = self._peers.setdefault(address, _Peer(most, now))
        self._peers.move_to_end(address)
        while len(self._peers) > self._settings.max_addresses:
            self._peers.popitem(last=False)
        known.tries = min(most, known.tries + (now - known.seen) / self._seconds_for_a_try)
        known.seen = now
        return known


def address_of(peer: str) -> str:
    """Returns the address of a gRPC peer such as `ipv4:10.0.0.1:50412`: no port, and of IPv6 the network alone."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> (128 - _IPV6_PREFIX) << (128 - _IPV6_PREFIX))}/{_IPV6_PREFIX}"
    return str(address)
