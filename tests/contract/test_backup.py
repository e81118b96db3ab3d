"""A backup brings back what only Redis and the concept store had."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from concept_support import Concepts, a_set
from embedded_queue import own_settings

from sagittal.queue.scripts import root_key
from sagittal.registry.backup import BackupSettings, BackupUnusable, restore_backup, save_backup
from sagittal.registry.concept_files import ConceptStorage
from sagittal.registry.redis import RedisModelRegistry
from sagittal.v1 import model_pb2

TENANTS = ("default", "an:other")
STORED = ("declared", "latest", "origins", "concept_bytes")
"""Hashes that must come back byte for byte."""


@pytest.fixture
def settings(server_url: str, tmp_path: Path) -> BackupSettings:
    return BackupSettings(queue=own_settings(url=server_url), concepts=ConceptStorage(directory=tmp_path / "concepts"))


@pytest.fixture
def client(settings: BackupSettings):
    with redis.Redis.from_url(settings.queue.url) as connected:
        yield connected


def declaration(name: str, version: str = "1") -> model_pb2.Model:
    model = model_pb2.Model(name=name, version=version, labels=["cat", "dog"], tags={"b": "2", "a": "1"})
    model.source.kind = "torchvision"
    return model


async def fill(settings: BackupSettings, directory: Path) -> None:
    """Registers three models, one of them from a file, and stores a concept set for each of two tenants."""
    registry = RedisModelRegistry(settings.queue)
    await registry.register(declaration("api", "1"))
    await registry.register(declaration("api", "2"), latest=True)
    await registry.declare(declaration("file"), latest=True)
    await registry.close()
    concepts = Concepts(settings.queue, directory)
    for tenant in TENANTS:
        concepts.seed(tenant, a_set(f"set-of-{tenant[:2]}"))
    concepts.worker.close()


def stored(client: redis.Redis, settings: BackupSettings) -> dict[str, object]:
    """Returns the content of Redis that a backup must bring back, without what counts changes."""
    root = root_key(settings.queue)
    found: dict[str, object] = {name: client.hgetall(root + name) for name in STORED}
    for key in client.scan_iter(match=f"{root}concept:*"):
        found[key.decode()] = client.hmget(key, "document", "weights", "examples", "bytes")
    return found


def lose(client: redis.Redis, settings: BackupSettings, directory: Path) -> None:
    for key in client.scan_iter(match=f"{root_key(settings.queue)}*"):
        client.delete(key)
    for file in directory.glob("files/*"):
        file.unlink()


async def saved_and_lost(client: redis.Redis, settings: BackupSettings) -> tuple[bytes, dict[str, object]]:
    directory = settings.concepts.directory
    assert directory is not None
    await fill(settings, directory)
    before = stored(client, settings)
    backup, summary = save_backup(settings)
    assert (summary.models, summary.concept_sets, summary.failed) == (2, 2, ())
    lose(client, settings, directory)
    return backup, before


async def test_models_and_concept_sets_come_back_byte_for_byte(client, settings) -> None:
    directory = settings.concepts.directory
    backup, before = await saved_and_lost(client, settings)
    registry = RedisModelRegistry(settings.queue)
    await registry.declare(declaration("file"), latest=True)  # as its worker does
    await registry.close()
    summary = await asyncio.to_thread(restore_backup, settings, backup)
    assert (summary.models, summary.concept_sets, summary.kept) == (2, 2, ())
    assert stored(client, settings) == before
    assert len(list(directory.glob("files/*"))) == 4


async def test_restoring_again_changes_nothing_and_keeps_the_files(client, settings) -> None:
    backup, _ = await saved_and_lost(client, settings)
    await asyncio.to_thread(restore_backup, settings, backup)
    summary = await asyncio.to_thread(restore_backup, settings, backup)
    assert (summary.models, summary.concept_sets, summary.kept) == (2, 2, ())
    assert client.zcard(f"{root_key(settings.queue)}concept_files") == 0, "no file waits for its deletion"


async def test_a_set_that_was_just_deleted_is_restored_with_its_files(client, settings) -> None:
    directory = settings.concepts.directory
    await fill(settings, directory)
    backup, _ = save_backup(settings)
    concepts = Concepts(settings.queue, directory)
    await concepts.ask(lambda sets: sets.delete("default", "model", "set-of-de"))
    await asyncio.to_thread(restore_backup, settings, backup)
    await concepts.ask(lambda sets: sets.sweep(concepts.files))
    concepts.worker.close()
    assert len(concepts.names()) == 4


async def test_what_exists_with_other_content_is_kept_and_reported(client, settings) -> None:
    backup, _ = await saved_and_lost(client, settings)
    registry = RedisModelRegistry(settings.queue)
    other = declaration("api", "1")
    other.source.kind = "timm"
    await registry.register(other)
    summary = await asyncio.to_thread(restore_backup, settings, backup)
    assert (summary.models, summary.concept_sets) == (1, 2)
    assert summary.kept == ("model api, version 1,",)
    assert (await registry.model("api", "1")).source.kind == "timm"
    await registry.close()


@pytest.mark.parametrize("damage", [b"", b"no zip", b"cut", b"changed"])
async def test_a_damaged_backup_restores_nothing(client, settings, damage: bytes) -> None:
    backup, _ = await saved_and_lost(client, settings)
    broken = {b"cut": backup[: len(backup) // 2], b"changed": backup[:200] + b"XXXX" + backup[204:]}.get(damage, damage)
    with pytest.raises(BackupUnusable, match="nothing was restored"):
        await asyncio.to_thread(restore_backup, settings, broken)
    assert not list(client.scan_iter(match=f"{root_key(settings.queue)}*"))


async def test_it_runs_as_a_program(client, settings, tmp_path) -> None:
    directory = settings.concepts.directory
    await fill(settings, directory)
    variables = {
        "SAGITTAL_QUEUE__URL": settings.queue.url,
        "SAGITTAL_QUEUE__PREFIX": settings.queue.prefix,
        "SAGITTAL_CONCEPTS__DIRECTORY": str(directory),
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sagittal.registry.backup", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=variables, timeout=120)

    file = tmp_path / "sagittal.backup"
    done = run("save", str(file))
    assert (done.returncode, done.stderr) == (0, "saved: 2 models, 2 concept sets\n")
    assert file.stat().st_mode & 0o777 == 0o600
    before = stored(client, settings)
    lose(client, settings, directory)
    done = run("restore", str(file))
    assert (done.returncode, done.stderr) == (0, "restored: 2 models, 2 concept sets\n")
    after = stored(client, settings)
    assert {key: after[key] for key in before if "concept" in key} == {
        k: v for k, v in before.items() if "concept" in k
    }
    for _ in range(2):
        (tmp_path / "backups").mkdir(exist_ok=True)
        (tmp_path / "backups" / "sagittal-20200101T000000Z.backup").write_bytes(b"old")
        assert run("save", str(tmp_path / "backups"), "1").returncode == 0
    (kept,) = (tmp_path / "backups").iterdir()
    assert kept.stat().st_size > 100
    assert run("restore", str(tmp_path / "backups")).returncode == 0
    done = run("restore", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert "nothing" in done.stderr
