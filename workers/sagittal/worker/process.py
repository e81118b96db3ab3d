"""A worker: leases jobs for its ready models, runs them on its engines, and renews their leases.

Its threads do not block each other: engine steps, leasing and decoding, heartbeats, cancellations, and writing events.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import structlog

from sagittal.core.errors import ModelFailed, Unavailable
from sagittal.core.jobs import JobState, Lease
from sagittal.process.supervision import THREAD_FAILURES, Supervised, SupervisionObserver, Supervisor
from sagittal.process.tracing import NO_TRACER, Tracer, within
from sagittal.queue.protocol import LeaseLost, WorkerQueue
from sagittal.worker.concepts.jobs import ConceptShelf
from sagittal.worker.concepts.store import ConceptStore
from sagittal.worker.devices import MIB, resident_bytes
from sagittal.worker.execution.run import JobRun, failed_event
from sagittal.worker.execution.trace import job_log, load_span
from sagittal.worker.execution.work import read_work
from sagittal.worker.execution.writer import EventWriter
from sagittal.worker.hosting.model import HostedModel
from sagittal.worker.hosting.reconciler import FORGOTTEN_AFTER, Reconciler
from sagittal.worker.metrics import WorkerMetrics
from sagittal.worker.outcomes import OutcomeReports
from sagittal.worker.settings import WorkerSettings
from sagittal.worker.vitals import Vitals

log = structlog.get_logger(__name__)

#: Longest time that a call for a job blocks, in seconds; a change of what this worker can do ends it.
LEASE_BLOCK = 60.0

#: Pause before the next check while this worker has no room, or a step hangs, in seconds.
FULL_PAUSE = 1.0

#: Threads that running jobs need to complete.
ENDING = ("engine", "event-writer")

#: Longest time that a call for cancellations blocks, in seconds.
LISTEN_BLOCK = 1.0

#: Pause of an idle engine before its next check, in seconds; an arriving job ends it.
IDLE = 0.5

#: Duration of a step on the device beyond which no jobs are leased beside it, in seconds.
LONG_STEP = 10.0

#: Pause after the queue was unavailable, in seconds.
AWAY_PAUSE = 1.0


class Worker:
    """The process between the queue and the device."""

    def __init__(
        self,
        settings: WorkerSettings,
        queue: WorkerQueue,
        models: Reconciler,
        metrics: WorkerMetrics,
        tracer: Tracer = NO_TRACER,
        observer: SupervisionObserver | None = None,
        vitals: Vitals | None = None,
        *,
        concepts: ConceptStore,
        outcomes: OutcomeReports,
    ) -> None:
        """Constructs the worker; `run` starts it."""
        self.supervisor = Supervisor(observer, on_given_up=self._end)
        """Supervisor of the threads."""
        self._settings = settings
        self._queue = queue
        self._models = models
        self._metrics = metrics
        self._tracer = tracer
        self._outcomes = outcomes
        self._shelf = ConceptShelf(store=concepts, settings=settings.concepts, attachment=queue.attachment)
        self._writer = EventWriter(queue, self.supervisor)
        self._runs: dict[tuple[str, int], JobRun] = {}
        self._runs_lock = threading.Lock()
        self._vitals = vitals or Vitals()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._work_arrived = threading.Event()
        self._room = threading.Event()
        self._beat_soon = threading.Event()
        self._unannounced = threading.Event()
        self.crashed = ""
        """The thread whose repeated failures end the worker, if any."""
        self.outgrown = False
        """Whether the worker ends because its memory reached the ceiling."""

    def drain(self) -> None:
        """Stops leasing; `run` returns when running jobs have ended or were released. Safe in a signal handler."""
        self._draining.set()
        self._room.set()

    def live(self) -> str:
        """Returns why the process must be restarted; empty if it need not be. Thread-safe."""
        if self._vitals.step.overdue:
            return f"{self._vitals.step.doing} has not ended for {self._vitals.step.seconds:.0f} s"
        return self.supervisor.failed()

    def ready(self) -> str:
        """Returns why the worker leases no jobs; empty if it does. Thread-safe."""
        if self._draining.is_set():
            return "it drains"
        if self._hangs():
            return f"{self._vitals.step.doing} has not ended for {self._vitals.step.seconds:.0f} s"
        return self.supervisor.ailing() or ("" if self._models.ready() else "no model is ready")

    def run(self) -> None:
        """Runs until drained."""
        while not self._shelf.store.import_older() and not self._draining.wait(AWAY_PAUSE):
            continue
        self._writer.start()
        drains, stops = self._draining.is_set, self._stopped.is_set
        threads = [
            self.supervisor.start_thread(name, loop, may_end=may_end, failures_allowed=failures_allowed)
            for name, loop, may_end, failures_allowed in (
                ("models", self._load_models, drains, THREAD_FAILURES),
                ("engine", self._step_engines, stops, 0),  # a failed step may leave jobs in an undefined state
                ("leasing", self._lease_jobs, drains, THREAD_FAILURES),
                ("heartbeat", self._keep_leases, stops, THREAD_FAILURES),
                ("cancellations", self._watch_cancellations, stops, THREAD_FAILURES),
            )
        ]
        self._draining.wait()
        self._finish()
        self._stopped.set()
        self._work_arrived.set()
        self._beat_soon.set()
        for one in threads[1:]:
            if one.thread is not None:
                one.thread.join(timeout=5)
        self._writer.stop(timeout=5)

    def _end(self, given_up: Supervised) -> None:
        """Ends the worker if a thread is given up: otherwise it would hold jobs that nothing runs."""
        self.crashed = given_up.name
        log.error("worker-thread-crashed", thread=self.crashed, doing="ending the worker")
        self.drain()

    def _load_models(self) -> None:
        self._models.follow(batch_size=self._settings.batch_size, stopped=self._draining)

    def _step_engines(self) -> None:
        while not self._stopped.is_set():
            self._work_arrived.clear()
            busy = [self._step(hosted) for hosted in self._models.running()]
            if not any(busy):
                self._work_arrived.wait(IDLE)
                self._forget_ended()

    def _step(self, hosted: HostedModel) -> bool:
        engine = hosted.engine
        if engine is None or not engine.running:
            return False
        started, before = time.monotonic(), replace(engine.counters)
        with self._vitals.step.during(f"a step of {hosted.entry.name}", seconds=self._settings.stall_seconds):
            engine.step()
        counters, name, seconds = engine.counters, hosted.entry.name, time.monotonic() - started
        rows = counters.rows - before.rows
        self._metrics.busy.labels(name).inc(counters.busy - before.busy)
        self._metrics.step.labels(name).observe(seconds)
        if rows:
            self._metrics.batch_fill.labels(name).observe(rows / engine.batch_size)
        self._forget_ended()
        return True

    def _lease_jobs(self) -> None:
        while not self._draining.is_set():
            if not self._has_room():
                continue
            if self._hangs():
                self._draining.wait(FULL_PAUSE)
                continue
            models = self._models.offered()
            if not models:
                self._draining.wait(0.1)
                continue
            busy = self._busy()
            try:
                lease = self._queue.lease(
                    models, block_seconds=LEASE_BLOCK, busy=busy, stop=partial(self._has_changed, models, busy=busy)
                )
            except Unavailable as away:
                self._away("lease", away)
                continue
            if lease is not None:
                self._take(lease)

    def _has_changed(self, models: Sequence[tuple[str, str]], *, busy: bool) -> bool:
        """Returns whether a call for a job must end: it asks for these models, and as a busy worker or an idle one."""
        return self._draining.is_set() or self._busy() is not busy or self._hangs() or self._models.offered() != models

    def _has_room(self) -> bool:
        self._room.clear()
        self._forget_ended()
        with self._runs_lock:
            full = len(self._runs) >= self._settings.max_jobs or any(run.lease.alone for run in self._runs.values())
        if full:
            self._room.wait(FULL_PAUSE)
        return not full

    def _busy(self) -> bool:
        """Returns whether anything runs, so that a job would not run alone."""
        with self._runs_lock:
            return bool(self._runs) or self._models.loading

    def _hangs(self) -> bool:
        """Returns whether a step on the device takes so long that other workers should lease the jobs."""
        return self._vitals.step.seconds > LONG_STEP

    def _note_runs(self) -> None:
        """Publishes to the parent which jobs run, and whether one must run alone. Called with the lock."""
        self._vitals.jobs = [job_id for job_id, _ in self._runs]
        if any(run.lease.alone for run in self._runs.values()):
            self._models.undisturbed.set()
        elif self._models.undisturbed.is_set():
            self._models.undisturbed.clear()
            self._models.wake()

    def _take(self, lease: Lease) -> None:
        """Starts a leased job; an error ends the job, not the worker."""
        hosted = self._models.get((lease.job.model, lease.job.version))
        if self._draining.is_set() or hosted is None:
            self._return(lease)
            return
        if hosted.hopeless:
            self._refuse(lease, hosted)
            return
        with self._models.pinned(hosted) as ready:
            if ready:
                self._begin(lease, hosted)
                return
        # Not loaded: another worker may have the model ready, so the job waits in the queue meanwhile.
        self._models.want(hosted, within=lambda: within(load_span(self._tracer, lease)))
        self._return(lease)

    def _begin(self, lease: Lease, hosted: HostedModel) -> None:
        if hosted.loaded is None or hosted.described is None or hosted.engine is None:
            raise RuntimeError(f"leased a job of {hosted.entry.key}, which is not ready")
        job_log(lease).info("job-started", method=lease.job.method, attempt=lease.job.attempt)
        run = JobRun(
            lease,
            hosted.loaded,
            self._writer,
            self._metrics,
            self._settings.worker_name,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            outcomes=self._outcomes,
            tracer=self._tracer,
        )
        with self._runs_lock:
            self._runs[lease.job.job_id, lease.token] = run
            self._note_runs()
        try:
            work = read_work(lease, hosted.loaded, hosted.described, self._settings.image_limits(), self._shelf)
        except Exception as error:  # noqa: BLE001 - JobRun distinguishes expected errors from bugs
            run.fail(error)
            return
        hosted.engine.submit(run.begin(work))
        self._work_arrived.set()

    def _refuse(self, lease: Lease, hosted: HostedModel) -> None:
        """Fails a job of a model that no worker can load: it would never run."""
        failure = ModelFailed(f"{hosted.entry.name} cannot be loaded: {hosted.message}", field="spec.model")
        log.info("job-failed", job_id=lease.job.job_id, reason=failure.reason, error=failure.message)
        self._metrics.jobs.labels(lease.job.model, lease.job.method, JobState.FAILED.value).inc()
        try:
            self._queue.settle(lease, failed_event(lease, failure), JobState.FAILED)
        except (Unavailable, LeaseLost) as error:
            log.warning("settle-failed", job_id=lease.job.job_id, error=str(error))

    def _return(self, lease: Lease) -> None:
        try:
            self._queue.release(lease)
        except (Unavailable, LeaseLost) as error:
            job_log(lease).warning("release-failed", error=str(error))

    def _keep_leases(self) -> None:
        settings = self._settings
        announced = -float("inf")
        while True:
            self._beat_soon.wait(settings.queue.heartbeat_seconds)
            self._beat_soon.clear()
            if self._stopped.is_set():
                return
            self._check_memory()
            try:
                self._beat()
                due = time.monotonic() - announced >= settings.announce_seconds or self._unannounced.is_set()
                if due and not self._draining.is_set():
                    self._unannounced.clear()
                    self._models.announce(ttl=FORGOTTEN_AFTER * settings.announce_seconds)
                    announced = time.monotonic()
                    self._outcomes.send()
            except Unavailable as away:
                self._unannounced.set()
                self._away("heartbeat", away)

    def _check_memory(self) -> None:
        """Ends this process before the kernel does, if its memory has reached the ceiling."""
        used, ceiling = resident_bytes(), self._settings.memory_ceiling_bytes()
        if used <= ceiling or self._draining.is_set():
            return
        log.error(
            "memory-ceiling-reached",
            used_mib=used // MIB,
            ceiling_mib=ceiling // MIB,
            models=[hosted.entry.name for hosted in self._models.ready()],
            doing="releasing the jobs and restarting",
            remedy="check the model for a leak, raise SAGITTAL_MEMORY_CEILING_MIB, or set SAGITTAL_MODEL_MEMORY_MIB",
        )
        self.outgrown = True
        self.drain()

    def _beat(self) -> None:
        with self._runs_lock:
            runs = dict(self._runs)
        lost, cancelled = self._queue.heartbeat([run.lease for run in runs.values() if not run.ended])
        for lease in lost:
            job_log(lease).warning("lease-lost", token=lease.token)
            self._metrics.leases_lost.inc()
            runs[lease.job.job_id, lease.token].drop()
        for each in cancelled:
            run = runs[each.lease.job.job_id, each.lease.token]
            if each.expired:
                run.expire()
            else:
                run.cancel(each.reason, age=each.age)

    def _watch_cancellations(self) -> None:
        """Sends a heartbeat and reads the registry when notified, instead of at the next interval."""
        lost = False
        while not self._stopped.is_set():
            try:
                notified = self._queue.listen(block_seconds=LISTEN_BLOCK)
            except Unavailable as away:
                lost = True
                self._away("listen", away)
                continue
            if lost:
                self._unannounced.set()  # a server that was restarted does not know this worker
                lost = False
            if notified:
                self._beat_soon.set()
                self._models.wake()

    def _away(self, call: str, away: Unavailable) -> None:
        self._metrics.queue_errors.labels(call).inc()
        log.warning("queue-away", doing=call, error=away.message, cause=str(away.__cause__ or ""))
        self._stopped.wait(AWAY_PAUSE)

    def _forget_ended(self) -> None:
        with self._runs_lock:
            ended = [key for key, run in self._runs.items() if run.ended]
            for key in ended:
                del self._runs[key]
            if ended:
                self._note_runs()
            running: dict[str, int] = {}
            for run in self._runs.values():
                running[run.lease.job.model] = running.get(run.lease.job.model, 0) + 1
        for hosted in self._models.ready():
            self._metrics.running.labels(hosted.entry.name).set(running.get(hosted.entry.name, 0))
        if ended:
            self._room.set()

    def _finish(self) -> None:
        """Lets running jobs end within the grace period, then releases the rest."""
        self._models.withdraw()
        if self.crashed in ENDING:
            # The jobs are not released, because that counts no attempt: a job that crashes its workers must be
            # dead-lettered.
            log.error("leases-left-to-expire", running=len(self._runs), thread=self.crashed)
            return
        log.info("draining", running=len(self._runs), seconds=self._settings.drain)
        if self._wait_for_runs(self._settings.drain):
            return
        with self._runs_lock:
            left = list(self._runs.values())
        log.info("releasing-jobs", jobs=len(left))
        for run in left:
            run.release()
        self._work_arrived.set()
        self._wait_for_runs(5.0)

    def _wait_for_runs(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._forget_ended()
            with self._runs_lock:
                if not self._runs:
                    return True
            time.sleep(0.05)
        return False
