"""The time from a caller's departure until the device of its explanation is idle."""

import time

import grpc
from reports import table
from service_load import percentile, picture
from service_stack import Stack

from sagittal import client as sdk
from sagittal.v1 import explanation_pb2, explanation_service_pb2, explanation_service_pb2_grpc, method_pb2, tensor_pb2

#: Number of abandoned explanations.
CALLS = 40

#: Masks of each: more than it reaches.
MASKS = 4000

#: Interval of checks whether a job has ended, in seconds.
LOOK = 0.01


def report(stack: Stack, model: str, batch_size: int, calls: int = CALLS) -> str:
    """Measures, and returns the section about it; `batch_size` is the worker's."""
    with sdk.Client(stack.address) as client, grpc.insecure_channel(stack.address) as channel:
        step = batch_size / client.model(model).evaluations_per_second
        stub = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
        delays = [_leave(stub, client, model, seed) for seed in range(calls)]
    rows = [
        ["half a step, and a whole one", f"{500 * step:.0f}, {1e3 * step:.0f}"],
        ["idle after, median", f"{1e3 * percentile(delays, 0.5):.0f}"],
        ["idle after, 99 %", f"{1e3 * percentile(delays, 0.99):.0f}"],
        ["idle after, longest", f"{1e3 * max(delays):.0f}"],
    ]
    return f"""## From a caller's departure to an idle device

Written by `make bench-service`. The caller of `Explain` drops its call while a worker runs RISE on {model};
the device is idle when the running step has ended, which is the time of the job's `cancelled` event. {calls} calls were
dropped, with {batch_size} evaluations in each step. On average, half a step is left when a call is dropped.

{table(["what", "ms"], rows)}
"""


def _leave(
    stub: explanation_service_pb2_grpc.ExplanationServiceStub, client: sdk.Client, model: str, seed: int
) -> float:
    """Abandons a running explanation; returns the seconds until its worker stopped working on it."""
    spec = explanation_pb2.ExplanationSpec(
        model=model,
        seed=seed,
        image=tensor_pb2.Image(encoded=picture()),
        method=method_pb2.Method(rise=method_pb2.RISE(masks=MASKS)),
    )
    call = stub.Explain(explanation_service_pb2.ExplainRequest(spec=spec))
    for response in call:
        if response.event.WhichOneof("event") == "progress":
            break
    time.sleep(0.1 + 0.037 * (seed % 10))  # at a different point of a step each time
    call.cancel()
    left, job_id = time.time(), response.event.job_id
    while client.job(job_id).state not in ("cancelled", "completed", "failed"):
        time.sleep(LOOK)
    *_, last = stub.WatchExplanation(explanation_service_pb2.WatchExplanationRequest(job_id=job_id))
    if not last.event.HasField("cancelled"):
        raise SystemExit(f"the job ended otherwise: {last.event}")
    return last.event.time.ToNanoseconds() / 1e9 - left
