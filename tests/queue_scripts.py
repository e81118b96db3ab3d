"""The queue's scripts, called as they are, on keys of their own."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import redis

from sagittal.core.jobs import JobKind, Lane, NewJob
from sagittal.queue.scripts import load_script, root_key, submit_arguments
from sagittal.queue.settings import QueueSettings
from sagittal.queue.sweep import sweep_arguments

Argument = bytes | str | int | float


@dataclass
class Scripts:
    """All scripts on one server, under a root of their own."""

    client: redis.Redis
    settings: QueueSettings = field(default_factory=lambda: QueueSettings(prefix=f"test-{secrets.token_hex(6)}"))

    @property
    def root(self) -> str:
        return root_key(self.settings)

    def run(self, name: str, *arguments: Argument) -> object:
        script = load_script(name)
        try:
            return self.client.evalsha(script.digest, 1, self.root, *arguments)
        except redis.exceptions.NoScriptError:
            return self.client.eval(script.text, 1, self.root, *arguments)

    def submit(self, job: NewJob) -> list:
        return self.run("submit", *submit_arguments(job, b"accepted", self.settings))

    def lease(self, model: str = "model@1", worker: str = "worker") -> list:
        return self.run("lease", worker, secrets.token_hex(8), 15.0, 5, "", "", model)

    def sweep(self) -> list:
        return self.run("sweep", *sweep_arguments(self.settings))

    def snapshot(self) -> Mapping[bytes, bytes]:
        """Returns every key with its whole value, except the election of a sweeper, which passes by itself."""
        keys = [key for key in self.stored_keys() if not key.endswith(b":sweeper")]
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.dump(key)
            return dict(zip(keys, pipeline.execute(), strict=True))

    def stored_keys(self) -> list[bytes]:
        return self.client.keys(f"{self.root}*")

    def delete_keys(self) -> None:
        """Deletes what a test leaves, which would make each later look at all keys longer."""
        self.client.unlink(*self.stored_keys())


def plain_job(**changes: object) -> NewJob:
    """Returns a job to submit; keyword arguments override what is plain."""
    plain: dict[str, object] = {
        "job_id": secrets.token_hex(16),
        "kind": JobKind.EXPLANATION,
        "model": "model",
        "version": "1",
        "method": "igos++",
        "lane": Lane.INTERACTIVE,
        "request": b"request",
        "images": {"image": b"\x00image\xff"},
    }
    return NewJob(**(plain | changes))  # type: ignore[arg-type]


def use_as_a_neighbour(scripts: Scripts, *, tenant: str = "neighbour", model: str = "neighbour") -> None:
    """Takes a job of another tenant through its whole life; fails where any of it does."""
    job = plain_job(tenant=tenant, model=model, content_key=secrets.token_hex(8), setting="{}")
    assert scripts.submit(job)[0] == b"new"
    scripts.sweep()
    for _ in range(3):
        answer = scripts.lease(f"{model}@1")
        if answer[0] != b"end":
            break
        scripts.run("end", *answer[2:5], "failed", "", b"over")
    verdict, token, found = answer[:3]
    assert (verdict, found.decode()) == (b"lease", job.job_id)
    assert scripts.run("heartbeat", 15.0, job.job_id, token) == [b""]
    assert scripts.run("append", job.job_id, token, 1, 2**20, 2**30, 2**29, b"e1") == b"ok"
    assert scripts.run("checkpoint", job.job_id, token, b"state") == b"ok"
    scripts.sweep()
    bounds = (2**20, 2**30, 2**29)
    assert scripts.run("settle", job.job_id, token, "completed", 60.0, *bounds, 10, 1.5, "", b"tdone") == b"ok"
    assert scripts.run("get", job.job_id)[2] == b"completed"
    assert scripts.run("read", job.job_id, 0, 16, 2**20, "")[0] == b"1"
    scripts.run("backlog")
    scripts.run("list", "", 100, 500, *[""] * 11)
    assert scripts.run("delete", job.job_id, "nonce") == b"ok"
