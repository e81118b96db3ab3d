"""What the queue keeps in Redis, as an operator is told."""

import asyncio
import os
import subprocess
import sys

import redis

from sagittal.core.jobs import JobState
from sagittal.queue.jobs import RedisJobQueue
from sagittal.queue.leases import RedisWorkerQueue
from sagittal.queue.scripts import root_key
from sagittal.queue.usage import measure_usage


async def test_every_byte_of_a_job_is_told_by_what_it_is_for(queue_settings, new_job) -> None:
    jobs, worker = RedisJobQueue(queue_settings), RedisWorkerQueue(queue_settings, worker="worker")
    for number in range(10):
        await jobs.submit(new_job(images={"image": bytes(100_000)}, request_id=f"r{number}"), b"accepted")
    lease = worker.lease([("model", "1")], block_seconds=0)
    worker.settle(lease, b"done", JobState.COMPLETED, [bytes(50_000)])
    with redis.Redis.from_url(queue_settings.url) as client:
        usage = measure_usage(client, root_key(queue_settings))
    assert usage.jobs == 10
    runs, logs = usage.parts["executions: requests, images, checkpoints"], usage.parts["logs: events"]
    assert (runs.keys, logs.keys) == (10, 1)
    assert 1_000_000 < runs.bytes < 1_500_000
    assert 50_000 < logs.bytes < 100_000
    assert 1_050_000 < usage.accounted < usage.bytes < 1_700_000
    assert usage.bytes_per_job == usage.bytes / 10
    worker.close()
    await jobs.close()


async def test_it_runs_as_a_program_on_the_settings_of_the_others(queue_settings, new_job) -> None:
    jobs = RedisJobQueue(queue_settings)
    await jobs.submit(new_job(), b"accepted")
    variables = {"SAGITTAL_QUEUE__URL": queue_settings.url, "SAGITTAL_QUEUE__PREFIX": queue_settings.prefix}
    command = [sys.executable, "-m", "sagittal.queue.usage"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    assert "executions: requests, images, checkpoints" in done.stdout
    assert "max_stored_bytes" in done.stdout
    nowhere = variables | {"SAGITTAL_QUEUE__URL": "unix:///nowhere/redis.sock"}
    failed = await asyncio.to_thread(
        subprocess.run, command, env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "cannot be reached" in failed.stderr
    await jobs.close()
