"""What is started is gone at the end, whatever the end is."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from sagittal.cli.failures import Failure
from sagittal.cli.stack import Child, LocalStack, Plan, free_ports, model_names
from sagittal.client import Client, Occlusion, Options, Retry
from sagittal.process.embedded import EmbeddedValkey

SAGITTAL = [sys.executable, "-m", "sagittal.cli.main"]
#: A model that takes no time to load.
MODELS = """
[[models]]
name = "tiny"
source = { kind = "python", factory = "known_models:looks_at_left" }
labels = ["nothing", "left"]
preprocessing = { input_size = 56, fit = "squash", mean = [0.0, 0.0, 0.0], std = [1.0, 1.0, 1.0] }
"""


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found |= {int(entry.name)} | descendants(int(entry.name))
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition, seconds: float = 300.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


#: What `nohup program &` does in a shell without job control: the program begins deaf to Ctrl-C and to a hangup.
NOHUP = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def up(tmp_path):
    """`sagittal up`, started as `nohup` starts it, and its output."""
    models = tmp_path / "models.toml"
    models.write_text(MODELS)
    port, page = free_ports(2)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", NOHUP, *SAGITTAL, "up", "--listen", f"127.0.0.1:{port}"]
    command += ["--metrics-port", "0", "--page-port", str(page), "--models", str(models)]
    output = (tmp_path / "output").open("w")
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "SAGITTAL_THREADS": "1"},
    )
    try:
        ready = wait_until(lambda: "ready;" in (tmp_path / "output").read_text() or process.poll() is not None)
        assert ready, (tmp_path / "output").read_text()
        assert process.poll() is None, (tmp_path / "output").read_text()
        yield process, tmp_path / "output"
    finally:
        process.kill()
        process.wait()
        output.close()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_every_process_is_gone_after_a_signal(up, number, status) -> None:
    process, output = up
    children = descendants(process.pid)
    assert len(children) >= 3
    process.send_signal(number)
    assert process.wait(300) == status, output.read_text()
    assert wait_until(lambda: not any(alive(pid) for pid in children)), output.read_text()
    assert "Traceback" not in output.read_text()


#: A program that begins as `nohup program &` lets it.
WAITS = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from sagittal.cli.failures import stopping_on_signals
with stopping_on_signals():
    print("waiting", flush=True)
    time.sleep(60)
"""


def test_what_nohup_starts_in_the_background_heeds_sigint_and_outlives_its_terminal() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        process.wait(300)
        assert "Stopped" in process.stderr.read()


#: Hides the packages that are its second argument, then starts the program that is its first.
HIDING = """
import importlib, sys
sys.modules.update(dict.fromkeys(sys.argv.pop(2).split()))
importlib.import_module(sys.argv.pop(1)).main()
"""
#: The distributions that a bare install brings.
BARE = {"googleapis-common-protos", "grpcio", "numpy", "pillow", "protobuf", "sagittal", "typing_extensions"}


@pytest.fixture(scope="module")
def extras() -> str:
    """Every package that a bare install does not bring."""
    found = importlib.metadata.packages_distributions().items()
    return " ".join(package for package, distributions in found if not BARE.intersection(map(str.lower, distributions)))


@pytest.mark.parametrize(("module", "extra"), [
    ("sagittal.server.start", "service"),
    ("sagittal.worker.start", "worker"),
    ("sagittal.page.start", "page"),
    ("sagittal.kserve.start", "kserve"),
    ("sagittal.cli.main", "cli"),
])  # fmt: skip
def test_a_program_of_a_bare_install_names_its_extra(extras, module, extra) -> None:
    command = [sys.executable, "-c", HIDING, module, extras]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert done.stderr.strip().endswith(f"is not installed: pip install 'sagittal[{extra}]'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("module", "extra", "missing"), [
    ("sagittal.server.start", "service", "pydantic"),
    ("sagittal.worker.start", "worker", "torch"),
    ("sagittal.cli.main", "cli", "click"),
])  # fmt: skip
def test_a_program_whose_extra_is_not_installed_names_it(module, extra, missing) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from {module} import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert done.stderr.strip().endswith(f"{missing} is not installed: pip install 'sagittal[{extra}]'")
    assert "Traceback" not in done.stderr


def kill(up: subprocess.Popen, command: bytes) -> None:
    """Kills the first descendant whose command line begins or goes on so; those that it forked die with it."""
    found = [pid for pid in descendants(up.pid) if command in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(min(found), signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_what_dies_is_started_again_while_a_caller_sees_a_pause_and_nothing_outlives_the_whole(up, picture) -> None:
    process, output = up
    address = output.read_text().split("service  ")[1].split()[0]
    patient = Options(retry=Retry(call_seconds=60))  # to start again takes a busy machine some time
    with Client(address, options=patient) as client:
        for name, module in (("worker", b"sagittal.worker.start"), ("service", b"sagittal.server.main")):
            kill(process, module)
            method = Occlusion(window=1, grid=2)
            assert client.explain(picture, model="tiny", method=method, cache="bypass").completed is not None
            assert f"the {name} was killed by SIGKILL; restarting it" in output.read_text()
    assert process.poll() is None
    children = descendants(process.pid)
    process.kill()
    assert wait_until(lambda: not any(alive(pid) for pid in children)), "none outlives the program that started it"


@pytest.fixture
def plan(tmp_path) -> Plan:
    return Plan(listen="127.0.0.1:0", service_metrics=0, worker_metrics=0, models_file=tmp_path)


def test_a_valkey_that_dies_takes_the_jobs_along_where_no_state_is_kept(plan, tmp_path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        stack = LocalStack(plan, _valkey=server)
        stack.check()
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: not server.running)
        with pytest.raises(Failure, match="Valkey ended, and all jobs are lost: give --state DIR to keep them"):
            stack.tend(print)


def test_a_valkey_that_dies_is_started_again_on_what_it_had_written(plan, tmp_path) -> None:
    with EmbeddedValkey(tmp_path, persist=True) as server, redis.Redis.from_url(server.url) as client:
        stack, said = LocalStack(replace(plan, state=tmp_path), _valkey=server), []
        client.set("what", "was written")
        os.kill(server.pid, signal.SIGKILL)
        assert wait_until(lambda: not server.running)
        stack.tend(said.append)
        assert client.get("what") == b"was written"
        assert said == ["Valkey ended; restarting it on its stored data"]


def test_what_dies_too_often_is_given_up_with_the_end_of_its_log(plan, tmp_path) -> None:
    child = Child("worker", "sagittal.no_such_module", {}, tmp_path / "worker.log")
    stack, said = LocalStack(plan, [child]), []
    child.start()
    for _ in range(5):
        assert wait_until(lambda: child.ending)
        stack.tend(said.append)
    assert wait_until(lambda: child.ending)
    with pytest.raises(Failure, match=r"(?s)the worker ended with status 1; its log ends:.*no_such_module"):
        stack.tend(said.append)
    assert said == ["the worker ended with status 1; restarting it"] * 5


def test_a_port_in_use_is_said(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*SAGITTAL, "up", "--listen", f"127.0.0.1:{port}", "--metrics-port", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr


@pytest.mark.parametrize("text", ["no toml", "models = 3", "[[models]]\nversion = '1'"])
def test_a_models_file_that_is_none_is_said(tmp_path, text) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(Failure, match=r"models\.toml"):
        model_names(path)


def test_a_missing_extra_is_named() -> None:
    program = "import sys; sys.modules['click'] = None; from sagittal.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "sagittal[cli]" in done.stderr


def test_commands_that_draw_nothing_load_nothing_to_draw_with() -> None:
    program = "import sys, sagittal.cli.app; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_up_without_its_extra_names_it() -> None:
    program = (
        "import sys; sys.modules['grpc_health'] = None; sys.argv = ['sagittal', 'up'];"
        "from sagittal.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "sagittal[demo]" in done.stderr
