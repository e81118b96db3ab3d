"""A worker that answers immediately: the remaining time of a job is that of the service, the queue and the callers."""

import contextlib
import os
import signal
import threading

import numpy as np
from google.protobuf.message import Message

from sagittal.core.errors import Unavailable
from sagittal.core.jobs import JobState, Lease
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.settings import QueueSettings
from sagittal.registry.redis import RedisWorkerRegistry
from sagittal.v1 import explanation_pb2 as pb
from sagittal.v1 import model_pb2, tensor_pb2

MODEL = "at-once"

#: Number of jobs answered concurrently: enough to measure the service, and not one worker's wait for Redis.
AT_ONCE = 8


def model() -> model_pb2.Model:
    """Returns a model that accepts every method used here."""
    return model_pb2.Model(
        name=MODEL,
        version="1",
        digest="0" * 64,
        labels=["no", "yes"],
        classes=2,
        methods=[model_pb2.MethodDescription(name="igos++", field="igos_plus_plus")],
        preprocessing=model_pb2.Preprocessing(input_size=224),
    )


def answer(lease: Lease) -> tuple[list[bytes], bytes]:
    """Returns the events of a small explanation, with a 28 x 28 mask and both curves, and its terminal one."""
    score = pb.ClassScore(index=1, label="yes", score=0.9)
    steps = np.linspace(0, 1, 51).tolist()
    half = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT16, shape=[28, 28], data=bytes(28 * 28 * 2))
    facts: list[dict[str, Message]] = [
        {"started": pb.Started(worker="at-once", attempt=lease.job.attempt)},
        {"prediction": pb.Prediction(target=score, top=[score])},
        {"mask": pb.Mask(saliency=half, final=True)},
        *({"curve": pb.Curve(kind=kind, fractions=steps, scores=steps, auc=0.5)} for kind in (1, 2)),
    ]
    completed = pb.Completed(insertion=0.9, deletion=0.1, evaluations=100, model_version="1", run_time={"nanos": 1000})
    return [_event(lease, **fact) for fact in facts], _event(lease, completed=completed)


def _event(lease: Lease, **fact: Message) -> bytes:
    event = pb.ExplanationEvent(job_id=lease.job.job_id, request_id=lease.job.request_id, **fact)
    event.time.GetCurrentTime()
    return event.SerializeToString()


def work(settings: QueueSettings, name: str, stopped: threading.Event) -> None:
    """Answers one job after another. A job costs two round trips, each of which waits for Redis's disk."""
    queue = RedisWorkerQueue(settings, worker=name)
    while not stopped.is_set():
        with contextlib.suppress(Unavailable):
            lease = queue.lease([(MODEL, "1")], block_seconds=0.5)
            if lease is not None:
                events, terminal = answer(lease)
                queue.settle(lease, terminal, JobState.COMPLETED, events)
    queue.close()


def main() -> None:
    """Answers until SIGTERM."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    settings = QueueSettings(url=os.environ["SAGITTAL_QUEUE__URL"])
    registry = RedisWorkerRegistry(settings)
    registry.publish(model())
    states = [(MODEL, "1", model_pb2.WorkerModel(state=model_pb2.MODEL_STATE_READY))]
    names = [f"at-once-{number}" for number in range(AT_ONCE)]
    for name in names:
        registry.announce(name, states, ttl=86_400.0)
    threads = [threading.Thread(target=work, args=(settings, name, stopped)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry.close()


if __name__ == "__main__":
    main()
