import re

import pytest

from sagittal.page.settings import PageSettings
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.queue import usage
from sagittal.server.settings import ServiceSettings
from sagittal.worker.settings import WorkerSettings

WRONG = {
    "SAGITTAL_LOG_LEVEL=verbose": "should be 'debug', 'info', 'warning' or 'error'; it is 'verbose'",
    "SAGITTAL_QUEUE__LEASE_SECONDS=abc": "SAGITTAL_QUEUE__LEASE_SECONDS: Input should be a valid number",
    "SAGITTAL_QUEUE__LEASE_SECONDS=1": "SAGITTAL_QUEUE: heartbeat_seconds (1.0) must be at most half",
    "SAGITTAL_QUEUE__MISSPELT=1": "SAGITTAL_QUEUE__MISSPELT: unknown setting",
    "SAGITTAL_QUEUE__SENTINELS=a:1,b:2": "SAGITTAL_QUEUE__SENTINELS: must be JSON",
}


@pytest.mark.parametrize("program", [ServiceSettings, WorkerSettings])
@pytest.mark.parametrize(("setting", "message"), WRONG.items(), ids=list(WRONG))
def test_a_wrong_setting_is_named_with_what_it_must_be(monkeypatch, program, setting: str, message: str) -> None:
    name, _, value = setting.partition("=")
    monkeypatch.setenv(name, value)
    with pytest.raises(UnusableSettings, match=re.escape(message)):
        read_settings(program)


def test_all_wrong_settings_are_named_at_once(monkeypatch) -> None:
    monkeypatch.setenv("SAGITTAL_MAX_JOBS", "0")
    monkeypatch.setenv("SAGITTAL_THREADS", "-1")
    with pytest.raises(UnusableSettings, match=r"SAGITTAL_THREADS: (.|\n)*SAGITTAL_MAX_JOBS: "):
        read_settings(WorkerSettings)


def test_no_secret_is_shown(monkeypatch) -> None:
    monkeypatch.setenv("SAGITTAL_TOKENS", '{"hunter2": {"tenant": 1}}')
    with pytest.raises(UnusableSettings) as raised:
        read_settings(ServiceSettings)
    assert "it is" not in str(raised.value)
    monkeypatch.setenv("SAGITTAL_TOKENS", "hunter2")
    with pytest.raises(UnusableSettings, match="SAGITTAL_TOKENS: must be JSON") as raised:
        read_settings(ServiceSettings)
    assert "hunter2" not in str(raised.value)


def test_a_wrong_setting_of_the_page_is_named_with_its_own_prefix(monkeypatch) -> None:
    monkeypatch.setenv("SAGITTAL_PAGE_LISTEN_PORT", "-1")
    with pytest.raises(UnusableSettings, match=r"SAGITTAL_PAGE_LISTEN_PORT: Input should be greater"):
        read_settings(PageSettings)


def test_the_report_of_the_queues_memory_names_a_wrong_setting(monkeypatch, capsys) -> None:
    monkeypatch.setenv("SAGITTAL_QUEUE__LEASE_SECONDS", "abc")
    assert usage.main() == 2
    assert "SAGITTAL_QUEUE__LEASE_SECONDS: Input should be a valid number" in capsys.readouterr().err
