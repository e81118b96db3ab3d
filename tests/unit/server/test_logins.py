"""Wrong tokens are counted for each address, in bounded memory, and forgotten with time."""

import pytest

from sagittal.core.errors import Unauthenticated
from sagittal.server.rpc.access import FailedLogins, address_of
from sagittal.server.settings import LoginSettings

PEER, OTHER = "ipv4:10.0.0.1:5000", "ipv4:10.0.0.2:5000"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(clock: Clock) -> FailedLogins:
    return FailedLogins(LoginSettings(attempts=2, window=60, max_addresses=3), clock)


def guess(logins: FailedLogins, peer: str, times: int) -> None:
    for _ in range(times):
        logins.failed(peer)


def test_an_address_has_its_tries_and_then_is_told_how_long_to_wait(logins: FailedLogins) -> None:
    guess(logins, PEER, 2)
    with pytest.raises(Unauthenticated) as caught:
        logins.failed("ipv4:10.0.0.1:6000")
    assert caught.value.retry_after == pytest.approx(30)


def test_tries_come_back_one_by_one(logins: FailedLogins, clock: Clock) -> None:
    guess(logins, PEER, 2)
    clock.now = 30.0
    guess(logins, PEER, 1)
    with pytest.raises(Unauthenticated):
        logins.failed(PEER)


def test_tries_that_are_refused_do_not_prolong_the_wait(logins: FailedLogins) -> None:
    guess(logins, PEER, 2)
    for _ in range(1_000):
        with pytest.raises(Unauthenticated) as caught:
            logins.failed(PEER)
    assert caught.value.retry_after == pytest.approx(30)


def test_other_addresses_have_their_own(logins: FailedLogins) -> None:
    guess(logins, PEER, 2)
    logins.failed(OTHER)


def test_no_more_addresses_are_remembered_than_the_bound(logins: FailedLogins) -> None:
    for number in range(100):
        guess(logins, f"ipv4:10.1.0.{number}:1", 1)
    assert len(logins) == 3


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:50412", "10.0.0.1"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50412", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("unix:", "unix"),
        ("unix:/run/s.sock", "unix"),
    ],
)
def test_the_address_is_what_a_guesser_cannot_change_at_will(peer: str, address: str) -> None:
    assert address_of(peer) == address
