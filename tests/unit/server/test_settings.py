import hashlib

import pytest
from pydantic import ValidationError

from sagittal.server.settings import ConnectionSettings, JobSettings, ServiceSettings, TlsSettings, Token

DIGEST = hashlib.sha256(b"secret").hexdigest()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGITTAL_LISTEN", "127.0.0.1:1, unix:///run/s.sock")
    monkeypatch.setenv("SAGITTAL_QUEUE__URL", "redis://elsewhere:6379/3")
    monkeypatch.setenv("SAGITTAL_JOBS__MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("SAGITTAL_TOKENS", f'{{"{DIGEST}": {{"tenant": "ann", "roles": ["admin"]}}}}')
    settings = ServiceSettings()
    assert settings.listen == ("127.0.0.1:1", "unix:///run/s.sock")
    assert settings.queue.url == "redis://elsewhere:6379/3"
    assert settings.jobs.max_in_flight == 7
    assert settings.tokens == {DIGEST: Token(tenant="ann", roles=frozenset({"admin"}))}


@pytest.mark.parametrize(
    "wrong",
    [
        {"listen": " , "},
        {"metrics_port": 70000},
        {"tokens": {"secret": {"tenant": "ann"}}},
        {"tokens": {DIGEST: {"tenant": "a b"}}},
        {"tokens": {DIGEST: {"tenant": "ann", "roles": ["king"]}}},
        {"jobs": {"max_deadline": 1}},
        {"jobs": {"misspelt": 1}},
        {"images": {"max_pixels": 0}},
        {"tls": {"certificate": "c.pem"}},
        {"tls": {"client_ca": "ca.pem"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServiceSettings(**wrong)


def test_a_stream_is_moved_before_its_connection_is_cut_off() -> None:
    settings = ConnectionSettings()
    assert settings.max_stream_seconds < settings.max_age_grace


def test_a_largest_picture_fits_into_a_message() -> None:
    settings = ServiceSettings()
    assert settings.images.max_bytes < settings.connections.max_message_bytes


@pytest.mark.parametrize("group", [ServiceSettings, JobSettings, ConnectionSettings, TlsSettings])
def test_every_setting_says_what_it_is(group: type[ServiceSettings]) -> None:
    assert all(field.description for field in group.model_fields.values())
