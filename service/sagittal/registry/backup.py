"""`python -m sagittal.registry.backup save FILE` and `restore FILE`: what only Redis and the concept store have.

    save FILE             writes a backup to FILE, to a new file in FILE if it is a directory, or to standard output (-)
    save DIRECTORY KEEP   also deletes all but the newest KEEP backups in DIRECTORY
    restore FILE          restores FILE, the newest backup in FILE if it is a directory, or standard input (-)

A backup holds the models that were registered over the API, with their latest versions, and all concept sets with their
files. It has no jobs, no answers and no models of model files, which their programs register again. The program reads
`SAGITTAL_QUEUE__*` and `SAGITTAL_CONCEPTS__*` like the service.
"""

import asyncio
import hashlib
import io
import json
import os
import secrets
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis
from google.protobuf.message import DecodeError
from pydantic_settings import BaseSettings, SettingsConfigDict

from sagittal.core.errors import ModelExists, NotFound, SagittalError
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.queue.connection import close_sync, connect_sync
from sagittal.queue.failures import translate
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage
from sagittal.registry.concept_sets import StoredConceptSet, WorkerConceptSets, parse_document
from sagittal.registry.redis import RedisModelRegistry
from sagittal.v1 import model_pb2

#: Version of the format. A program restores this one only.
FORMAT = 1

#: Name of the table of contents.
CONTENTS = "backup.json"

#: Names of backups in a directory sort by the time at which they were made.
_FILES = "sagittal-*.backup"
_FILE = "sagittal-%Y%m%dT%H%M%SZ.backup"


class BackupSettings(BaseSettings):
    """Environment variables of this program: those of the queue and of the concept store."""

    model_config = SettingsConfigDict(env_prefix="SAGITTAL_", env_nested_delimiter="__", frozen=True)

    queue: QueueSettings = QueueSettings()
    concepts: ConceptStorage = ConceptStorage()


class BackupUnusable(Exception):
    """A file is no backup, is damaged, or has another format. The message says which, and what to do."""


@dataclass(slots=True)
class Summary:
    """Numbers of saved or restored objects, and those that were left out."""

    models: int = 0
    concept_sets: int = 0
    kept: tuple[str, ...] = ()
    """Objects that were not restored, because Redis has others of the same names."""
    failed: tuple[str, ...] = ()
    """Concept sets that could not be saved, each with the reason."""

    def lines(self, done: str) -> Iterator[str]:
        """Yields the lines of the report; `done` is "saved" or "restored"."""
        yield f"{done}: {self.models} models, {self.concept_sets} concept sets"
        yield from (f"kept: {each} exists with other content; remove it first to restore it" for each in self.kept)
        yield from (f"not {done}: {each}" for each in self.failed)


def save_backup(settings: BackupSettings) -> tuple[bytes, Summary]:
    """Returns a backup as the bytes of a zip file.

    Raises:
        SagittalError: Redis failed, or there are concept sets but no store is configured.
        redis.RedisError: Redis failed.
    """
    summary, buffer = Summary(), io.BytesIO()
    contents: dict[str, Any] = {"format": FORMAT, "sagittal": version("sagittal"), "time": int(time.time())}
    with zipfile.ZipFile(buffer, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        contents["models"] = [
            {"latest": latest, **_added(archive, f"models/{number}", declaration)}
            for number, (declaration, latest) in enumerate(_registered(settings.queue))
        ]
        contents["concept_sets"] = list(_save_sets(settings, archive, summary))
        archive.writestr(CONTENTS, json.dumps(contents, indent=1))
    summary.models, summary.concept_sets = len(contents["models"]), len(contents["concept_sets"])
    return buffer.getvalue(), summary


def restore_backup(settings: BackupSettings, backup: bytes) -> Summary:
    """Restores a backup. What exists already with the same content is restored too; nothing is replaced.

    Raises:
        BackupUnusable: it is no backup, damaged, or of another format; nothing was restored.
        SagittalError: Redis or the concept store failed; restoring again continues.
    """
    models, sets = _read(backup)
    files = ConceptFiles(settings.concepts)
    if sets:
        files.check("program")
    summary = Summary()
    asyncio.run(_restore_models(settings.queue, models, summary))
    store = WorkerConceptSets(settings.queue, files, max_tenant_bytes=settings.concepts.max_tenant_bytes)
    try:
        for tenant, stored, contents in sets:
            if _restore_set(store, tenant, stored, contents):
                summary.concept_sets += 1
            else:
                name = f"{stored.description.model}/{stored.description.name}"
                summary.kept += (f"concept set {name} of tenant {tenant}",)
    finally:
        store.close()
    return summary


async def _restore_models(
    settings: QueueSettings, models: Sequence[tuple[model_pb2.Model, bool]], summary: Summary
) -> None:
    registry = RedisModelRegistry(settings)
    try:
        for declaration, latest in models:
            try:
                await registry.register(declaration, latest=latest)
                summary.models += 1
            except ModelExists:
                summary.kept += (f"model {declaration.name}, version {declaration.version},",)
    finally:
        await registry.close()


def _restore_set(
    store: WorkerConceptSets, tenant: str, stored: StoredConceptSet, contents: Mapping[str, bytes]
) -> bool:
    """Restores a set; returns False if another one has its name."""
    described = stored.description
    try:
        present = store.get(tenant, described.model, described.name)
    except NotFound:
        store.write_files(dict(contents))
        return store.import_set(tenant, stored, sum(map(len, contents.values())))
    if (present.description, present.weights, present.examples) != (described, stored.weights, stored.examples):
        return False
    for name, content in contents.items():
        store.files.write(name, content)  # in case the store has lost it
    return True


def _registered(settings: QueueSettings) -> Sequence[tuple[bytes, bool]]:
    """Returns the declarations that came over the API, as they are stored, and whether each is its name's latest."""
    settings = settings.shards()[0]
    client: Any = connect_sync(settings)  # its stubs give every answer all types
    root = root_key(settings)
    try:
        declared, origins, latest = (client.hgetall(f"{root}{name}") for name in ("declared", "origins", "latest"))
    finally:
        close_sync(client)
    found = []
    for key in sorted(declared):
        name, _, its_version = key.rpartition(b"@")
        if origins.get(key) == b"api":
            found.append((declared[key], latest.get(name) == its_version))
    return found


def _save_sets(settings: BackupSettings, archive: zipfile.ZipFile, summary: Summary) -> Iterator[Mapping[str, Any]]:
    """Yields the entry of each concept set, whose document and files it adds to the archive."""
    client: Any = connect_sync(settings.queue.shards()[0])
    root = root_key(settings.queue)
    files = ConceptFiles(settings.concepts)
    try:
        for tenant in sorted(each.decode() for each in client.hkeys(f"{root}concept_bytes")):
            for member in client.zrange(f"{root}concepts:{tenant}", 0, -1):
                files.check("program")
                path = f"{root}concept:{tenant}:{member.decode()}"
                found = client.hmget(path, "document", "weights", "examples")
                if None in found:
                    continue  # deleted meanwhile
                document, names = found[0], [name.decode() for name in found[1:]]
                try:
                    contents = {name: files.read(name) for name in names}
                except SagittalError as error:
                    summary.failed += (f"concept set {member.decode()} of tenant {tenant}: {error.message}",)
                    continue
                for name, content in contents.items():
                    archive.writestr(f"files/{name}", content)
                entry = _added(archive, f"concept_sets/{tenant}/{member.decode()}", document)
                yield {"tenant": tenant, "weights": names[0], "examples": names[1], **entry}
    finally:
        close_sync(client)


def _added(archive: zipfile.ZipFile, name: str, content: bytes) -> Mapping[str, str]:
    """Adds a file to the archive, and returns the part of its entry that names and protects it."""
    archive.writestr(name, content)
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}


StoredSet = tuple[str, StoredConceptSet, dict[str, bytes]]


def _read(backup: bytes) -> tuple[Sequence[tuple[model_pb2.Model, bool]], Sequence[StoredSet]]:
    """Returns all that is in a backup: declarations, and sets with their tenant and files. Raises BackupUnusable."""
    try:
        with zipfile.ZipFile(io.BytesIO(backup)) as archive:
            contents = json.loads(archive.read(CONTENTS))
            if contents["format"] != FORMAT:
                raise BackupUnusable(
                    f"the backup has format {contents['format']}, and this program reads {FORMAT}: restore it with "
                    f"Sagittal {contents['sagittal']}, which wrote it"
                )
            models = [
                (model_pb2.Model.FromString(_content(archive, each)), bool(each["latest"]))
                for each in contents["models"]
            ]
            sets = [_set(archive, each) for each in contents["concept_sets"]]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, DecodeError, EOFError, OSError) as error:
        raise BackupUnusable(
            f"the file is not a backup, or is damaged ({error}): nothing was restored; take another copy"
        ) from error
    return models, sets


def _content(archive: zipfile.ZipFile, entry: Mapping[str, str]) -> bytes:
    content = archive.read(entry["file"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['file']} has another content than when it was saved")
    return content


def _set(archive: zipfile.ZipFile, entry: Mapping[str, str]) -> StoredSet:
    _, _, member = entry["file"].removeprefix("concept_sets/").partition("/")
    described = parse_document(_content(archive, entry), member)
    if described is None:
        raise ValueError(f"{entry['file']} is not a concept set")
    names = entry["weights"], entry["examples"]
    stored = StoredConceptSet(description=described, weights=names[0], examples=names[1])
    return entry["tenant"], stored, {name: archive.read(f"files/{name}") for name in names}


def write_file(path: str, content: bytes) -> None:
    """Writes a backup atomically, readable by its owner only. Raises OSError.

    Args:
        path: File, directory in which it gets a name by the time, or `-` for standard output.
        content: The backup.
    """
    if path == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    if Path(path).is_dir():
        path = str(Path(path) / time.strftime(_FILE, time.gmtime()))
    partial = Path(f"{path}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_file(path: str) -> bytes:
    """Returns a backup: a file, the newest in a directory, or standard input for `-`. Raises OSError."""
    if path == "-":
        return sys.stdin.buffer.read()
    if not Path(path).is_dir():
        return Path(path).read_bytes()
    if not (found := sorted(Path(path).glob(_FILES))):
        raise FileNotFoundError(f"{path} has no backup ({_FILES})")
    return found[-1].read_bytes()


def drop_old(directory: str, keep: int) -> None:
    """Deletes all but the newest `keep` backups in a directory. Raises OSError."""
    for file in sorted(Path(directory).glob(_FILES))[:-keep]:
        file.unlink()


def main(arguments: Sequence[str] = ()) -> int:
    """Runs the program; returns the exit status.

    0: all was saved or restored; 1: some was not, or Redis failed; 2: wrong arguments, settings or file.
    """
    match arguments:
        case ["save" | "restore" as what, path]:
            keep = 0
        case ["save" as what, path, number] if number.isdecimal() and int(number) and Path(path).is_dir():
            keep = int(number)
        case _:
            sys.stdout.write(f"{__doc__}\n")
            return 0 if list(arguments) in (["-h"], ["--help"]) else 2
    try:
        settings = read_settings(BackupSettings)
        if what == "save":
            content, summary = save_backup(settings)
            write_file(path, content)
            if keep:
                drop_old(path, keep)
        else:
            summary = restore_backup(settings, read_file(path))
    except (UnusableSettings, BackupUnusable, OSError) as error:
        sys.stderr.write(f"sagittal backup: {error}\n")
        return 1 if isinstance(error, redis.RedisError) else 2
    except redis.RedisError as error:
        sys.stderr.write(f"sagittal backup: {translate(error, settings.queue)}\n")
        return 1
    except SagittalError as error:
        sys.stderr.write(f"sagittal backup: {error.message}\n")
        return 1
    sys.stderr.write("\n".join(summary.lines("saved" if what == "save" else "restored")) + "\n")
    return 1 if summary.kept or summary.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
