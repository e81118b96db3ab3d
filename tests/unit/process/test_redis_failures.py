"""Every error that Redis answers with means something: wait, refuse or fail."""

import pytest
from redis import exceptions as faults
from redis._parsers.base import BaseParser
from redis_replies import SAMPLES

from sagittal.core.errors import ArgumentRefused, Overloaded, QueueFailed, Unavailable
from sagittal.queue.failures import FAIL, REFUSE, REPLIES, UNKNOWN, UNREACHABLE, WAIT, classify, translate
from sagittal.queue.settings import QueueSettings

SETTINGS = QueueSettings()


@pytest.mark.parametrize(("name", "said"), [(name, said) for name, every in SAMPLES.items() for said in every])
def test_what_redis_answers_is_known_by_its_meaning(name: str, said: str) -> None:
    error = BaseParser.parse_error(said)
    reply = classify(error)
    assert reply.name == name
    translated = translate(error, SETTINGS)
    assert type(translated) is reply.error
    assert (translated.retry_after is None) == (reply.error in (QueueFailed, ArgumentRefused))
    of_accepted_work = {"OOM": Unavailable, "ARGUMENT": QueueFailed}.get(name, reply.error)
    assert type(translate(error, SETTINGS, accepted=True)) is of_accepted_work


def test_every_reply_of_the_table_has_a_sample() -> None:
    assert set(SAMPLES) == {reply.name for reply in (*REPLIES, UNKNOWN)}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [("NOREPLICAS", WAIT), ("MISCONF", REFUSE), ("OOM", REFUSE), ("NOAUTH", FAIL), ("DAMAGED", FAIL)],
)
def test_meanings(name: str, meaning: object) -> None:
    assert {reply.name: reply.meaning for reply in REPLIES}[name] is meaning


@pytest.mark.parametrize(
    "error",
    [
        faults.ConnectionError("gone"),
        faults.TimeoutError("slow"),
        OSError(111, "refused"),
        TimeoutError(),
        faults.InvalidResponse("Protocol Error: b'HTTP/1.1 400 Bad Request'"),
    ],
)
def test_no_answer_is_waited_for(error: Exception) -> None:
    assert classify(error) is UNREACHABLE
    assert type(translate(error, SETTINGS)) is Unavailable


def test_a_bug_in_a_call_of_redis_is_an_error_that_nobody_knows() -> None:
    assert classify(faults.DataError("Invalid input of type: 'dict'")) is UNKNOWN


def test_what_redis_says_of_keys_does_not_reach_callers() -> None:
    said = "WRONGTYPE Operation against a key holding the wrong kind of value script: f00, on @user_script:12."
    assert "f00" not in translate(BaseParser.parse_error(said), SETTINGS).message
    assert "secret" not in translate(faults.ResponseError("HELP key:secret"), SETTINGS).message


def test_a_refusal_is_found_behind_a_lost_connection_and_a_forgotten_script_is_not() -> None:
    lost = faults.ConnectionError("lost")
    lost.__context__ = faults.AuthenticationError("invalid username-password pair or user is disabled.")
    assert classify(lost).name == "WRONGPASS"
    lost.__context__ = faults.NoScriptError("No matching script.")
    assert classify(lost) is UNREACHABLE


def test_a_full_memory_refuses_callers_and_lets_accepted_work_wait() -> None:
    full = BaseParser.parse_error(SAMPLES["OOM"][0])
    refused = translate(full, SETTINGS)
    assert isinstance(refused, Overloaded)
    assert refused.retry_after == SETTINGS.overload_retry_after
