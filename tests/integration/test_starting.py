"""A program that is asked to stop while it starts stops then, as process 1 of a container too."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROCESS_1 = ["unshare", "--fork", "--pid", "--kill-child"]


def may_unshare() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*PROCESS_1, "true"], check=False).returncode


def handles_sigterm(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def wait_for(condition):
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.005)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP")
@pytest.mark.parametrize("wish", ["", "ACTIVE"])
def test_threads_of_a_worker_sleep_while_they_wait_for_each_other_unless_it_is_told(wish: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", "SAGITTAL_MODELS_FILE": str(tmp_path / "none.toml")}
    environment |= {"OMP_WAIT_POLICY": wish} if wish else {}
    command = [sys.executable, "-m", "sagittal.worker.start"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"OMP_WAIT_POLICY = '{wish or 'PASSIVE'}'" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="looks into /proc")
@pytest.mark.parametrize("program", ["sagittal.server.start", "sagittal.worker.start"])
@pytest.mark.parametrize("alone", [False, True], ids=["a-process", "process-1"])
def test_a_program_that_still_imports_ends_when_it_is_asked_to(program, alone) -> None:
    if alone and not may_unshare():
        pytest.skip("needs the right to make a namespace of processes")
    command = [sys.executable, "-c", f"from {program} import main; main()"]
    started = subprocess.Popen([*PROCESS_1, *command] if alone else command, stderr=subprocess.PIPE)
    try:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        pid = int(wait_for(lambda: children.read_text().split())[0]) if alone else started.pid
        wait_for(lambda: handles_sigterm(pid))
        os.kill(pid, signal.SIGTERM)
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 128 + signal.SIGTERM, errors
        assert not errors
    finally:
        started.kill()
        started.wait()
