"""`make live-alerts`: breaks a running installation in many ways, and waits until a real Prometheus fires each alert.

The rules are those of the chart, with every duration a sixtieth: minutes are seconds. Thresholds are as shipped.
Each fault is then repaired as its runbook says, and its alert must stop.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import trustme
import yaml
from deaths_support import PICTURE, QUICK
from e2e_stack import Program, Stack, free_port, wait_until
from reports import table, write_section

from sagittal.client import Client, Options, SagittalError
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.settings import QueueSettings
from sagittal.registry.protocol import Outcomes
from sagittal.registry.redis import RedisWorkerRegistry

ALERTS = Path(__file__).parents[2] / "helm" / "sagittal" / "files" / "alerts.yaml"
#: Factor by which durations in the rules are shortened.
QUICKER = 60
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LIMITS = {
    "SAGITTAL_QUEUE__MAX_QUEUED": '{"interactive": 100, "batch": 100}',
    "SAGITTAL_QUEUE__MAX_QUEUED_PER_TENANT": '{"interactive": 100, "batch": 100}',
    "SAGITTAL_QUEUE__ABSENT_SHARE": "1",
}


def quick(text: str) -> str:
    """Returns an expression or a duration in which every duration is a sixtieth."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * SECONDS[found[3]] * 1000 // QUICKER}ms"

    return re.sub(r"(\[|offset |^)(\d+)([smhd])\b", shorter, text)


def quick_rules() -> str:
    """Returns the chart's rules with shorter durations."""
    rules = yaml.safe_load(ALERTS.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["expr"] = quick(rule["expr"])
            if "for" in rule:
                rule["for"] = quick(rule["for"])
    return yaml.safe_dump(rules)


@dataclass
class Site:
    """An installation that is scraped by a Prometheus."""

    directory: Path
    valkey: EmbeddedValkey
    stack: Stack
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in ("service", "worker", "tls")})
    prometheus: str = ""

    def start_service(self) -> Program:
        return self.stack.start_service(SAGITTAL_METRICS_PORT=str(self.ports["service"]), **LIMITS)

    def start_worker(self) -> Program:
        worker = self.stack.start_worker(SAGITTAL_METRICS_PORT=str(self.ports["worker"]))
        self.stack.wait_for_model("left")
        return worker

    @property
    def service(self) -> Program:
        return next(each for each in reversed(self.stack.programs) if each.name.startswith("server"))

    @property
    def worker(self) -> Program:
        return next(each for each in reversed(self.stack.programs) if each.name.startswith("worker"))

    def forget(self, program: Program) -> None:
        """Removes a program that was killed, which is otherwise an error."""
        program.process.wait()
        self.stack.programs.remove(program)

    @contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.stack.address, options=Options(timeout=5.0)) as client:
            yield client

    def firing(self) -> set[str]:
        url = f"{self.prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": 'ALERTS{alertstate="firing"}'})
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own, on this machine
            return {each["metric"]["alertname"] for each in json.load(answer)["data"]["result"]}


@contextmanager
def scraped(site: Site) -> Iterator[None]:
    """Runs a Prometheus with the quick rules."""
    binary, port = shutil.which("prometheus"), free_port()
    if binary is None:
        raise SystemExit("live-alerts: prometheus is not installed: apt-get install prometheus")
    jobs = {"service": "sagittal-headless", "worker": "sagittal/sagittal-worker", "tls": "tls"}
    (site.directory / "rules.yml").write_text(quick_rules())
    targets = [
        {
            "job_name": jobs[name],
            "static_configs": [{"targets": [f"127.0.0.1:{number}"], "labels": {"namespace": "sagittal", "pod": name}}],
        }
        for name, number in site.ports.items()
    ]
    intervals = {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"}
    settings = {"global": intervals, "rule_files": ["rules.yml"], "scrape_configs": targets}
    (site.directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [binary, f"--config.file={site.directory}/prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    with (site.directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={site.directory}/data"], stdout=log, stderr=log, cwd=site.directory
        )
    site.prometheus = f"http://127.0.0.1:{port}"
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def service_dies(site: Site) -> Iterator[None]:
    """The service is killed"""
    site.service.process.kill()
    site.forget(site.service)
    yield
    site.start_service()


@contextmanager
def worker_dies(site: Site) -> Iterator[None]:
    """The only worker is killed"""
    site.worker.process.kill()
    site.forget(site.worker)
    yield
    site.start_worker()


@contextmanager
def worker_hangs(site: Site) -> Iterator[None]:
    """The worker's process is stopped (SIGSTOP), as on a frozen node"""
    pid = site.worker.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        os.kill(each, signal.SIGSTOP)
    yield
    for each in (pid, *map(int, children)):
        os.kill(each, signal.SIGCONT)


@contextmanager
def redis_dies(site: Site) -> Iterator[None]:
    """Valkey is killed"""
    os.kill(site.valkey.pid, signal.SIGKILL)
    yield
    site.valkey.stop()
    site.valkey.start()


@contextmanager
def calls_fail(site: Site) -> Iterator[None]:
    """Valkey is killed while a client calls"""
    with redis_dies(site), repeating(lambda: call(site), threads=6):
        yield


@contextmanager
def registry_is_emptied(site: Site) -> Iterator[None]:
    """Valkey loses its data (FLUSHALL)"""
    with redis.Redis.from_url(site.valkey.url) as client:
        client.flushall()
    yield
    site.stack.wait_for_model("left")


@contextmanager
def jobs_without_a_worker(site: Site) -> Iterator[None]:
    """The worker is stopped, and a job waits"""
    site.worker.stop()
    site.forget(site.worker)
    submit(site)
    yield
    site.start_worker()


@contextmanager
def queue_grows(site: Site) -> Iterator[None]:
    """The worker is stopped, and jobs keep coming"""
    with jobs_without_a_worker(site), repeating(lambda: submit(site), pause=0.3):
        yield


@contextmanager
def queue_is_full(site: Site) -> Iterator[None]:
    """The worker is stopped, and the queue is full"""
    with jobs_without_a_worker(site), repeating(lambda: submit(site), pause=0.02):
        yield


@contextmanager
def model_does_not_load(site: Site) -> Iterator[None]:
    """A model whose weights are missing is registered"""
    with site.client() as client:
        source = {"kind": "torchvision", "model": "resnet18", "weights": "nosuch.pt"}
        client.register_model({"name": "lost", "source": source})
        yield
        client.unregister_model("lost", "1")


@contextmanager
def worker_keeps_dying(site: Site) -> Iterator[None]:
    """The worker's process is killed again and again"""
    pid = site.worker.process.pid

    def kill() -> None:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)

    with repeating(kill, pause=1.5):
        yield


@contextmanager
def certificate_expires(site: Site) -> Iterator[None]:
    """A replica has a certificate that is valid for 3 days"""
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    made = trustme.CA().issue_cert("localhost", not_after=until)
    made.private_key_pem.write_to_path(str(site.directory / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(site.directory / "certificate.pem"))
    secured = site.stack.start(
        "sagittal.server.main",
        SAGITTAL_LISTEN="127.0.0.1:0",
        SAGITTAL_METRICS_PORT=str(site.ports["tls"]),
        SAGITTAL_TLS__CERTIFICATE=str(site.directory / "certificate.pem"),
        SAGITTAL_TLS__KEY=str(site.directory / "key.pem"),
    )
    yield
    secured.stop()
    site.forget(secured)


@contextmanager
def canary_fails(site: Site) -> Iterator[None]:
    """A third of the jobs of a canary fail"""
    source = {"kind": "python", "factory": "known_models:looks_at_left"}
    with site.client() as client:
        client.register_model({"name": "left", "version": "2", "source": source, "labels": ["nothing", "left"]})
        client.set_canary("left", "2")
        registry = RedisWorkerRegistry(QueueSettings(url=site.valkey.url, prefix=site.stack.prefix))
        registry.report("w", time.time_ns(), Outcomes(name="left", version="2", completed=20, failed=10))
        registry.close()
        yield
        client.end_canary("left", "2")
        client.unregister_model("left", "2")


def call(site: Site) -> None:
    with site.client() as client:
        list(client.models())


def submit(site: Site, **changes: Any) -> None:
    with site.client() as client:
        client.submit(PICTURE, model="left", cache="bypass", **{"method": QUICK} | changes)


@contextmanager
def repeating(action: Callable[[], None], *, pause: float = 0.05, threads: int = 1) -> Iterator[None]:
    """Does something again and again in threads, whether or not it fails."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause):
            with contextlib.suppress(SagittalError, OSError):
                action()

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in running:
            thread.join()


Fault = Callable[[Site], AbstractContextManager[None]]

#: Alerts, and what must make each fire.
FAULTS: Sequence[tuple[str, Fault]] = (
    ("SagittalCertificateExpires", certificate_expires),
    ("SagittalCanaryRolledBack", canary_fails),
    ("SagittalServiceAbsent", service_dies),
    ("SagittalNoWorker", worker_dies),
    ("SagittalPodDown", worker_hangs),
    ("SagittalRedisAway", redis_dies),
    ("SagittalCallsFailing", calls_fail),
    ("SagittalRegistryLost", registry_is_emptied),
    ("SagittalWorkersAbsent", jobs_without_a_worker),
    ("SagittalQueueGrowing", queue_grows),
    ("SagittalRequestsRefused", queue_is_full),
    ("SagittalModelLoadFailing", model_does_not_load),
    ("SagittalWorkerRestarts", worker_keeps_dying),
)


def runbook_of(alert: str) -> str:
    """Returns the name of an alert's runbook."""
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    return next(Path(rule["annotations"]["runbook"]).stem for rule in rules if rule["alert"] == alert)


def try_fault(site: Site, alert: str, fault: Fault) -> tuple[object, ...]:
    """Causes a fault, waits for its alert, repairs it, and waits until the alert is over; returns a row."""
    wait_until(lambda: alert not in site.firing(), f"{alert} to be over before its fault")
    began = time.monotonic()
    with fault(site):
        wait_until(lambda: alert in site.firing(), f"{alert} to fire", 180)
        repairing = time.monotonic()
    wait_until(lambda: alert not in site.firing(), f"{alert} to be over", 180)
    fired, over = repairing - began, time.monotonic() - repairing
    runbook = runbook_of(alert)
    print(f"{alert}: after {fired:.1f} s, over {over:.1f} s after the repair began", flush=True)  # noqa: T201 - a program
    return (fault.__doc__ or "").strip(), alert, f"[{runbook}]({runbook}.md)", f"{fired:.0f}", f"{over:.0f}"


def main() -> None:
    """Tries every fault, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="document whose section `live-alerts` is written")
    parser.add_argument("--only", help="name of one alert")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="live-alerts-"))
    (folder / "valkey").mkdir()
    valkey = EmbeddedValkey(folder / "valkey", port=free_port(), persist=True)
    with valkey:
        stack = Stack(folder, valkey.url)
        site = Site(folder, valkey, stack)
        try:
            site.start_service()
            site.start_worker()
            with scraped(site):
                time.sleep(5)
                rows = [try_fault(site, *each) for each in FAULTS if given.only in (None, each[0])]
        finally:
            stack.stop()
    heading = ("fault", "alert", "runbook", "fired after, s", "over after the repair began, s")
    if given.write:
        write_section(given.write, "live-alerts", table(heading, rows))


if __name__ == "__main__":
    main()
