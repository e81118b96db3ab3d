"""Time until an emptied Redis has its registrations and concept sets back from a backup.

`python benchmarks/backup.py [--models 200] [--sets 100] [--write docs/operations.md]`: models with a thousand labels,
and concept sets of ten tenants, at a Valkey that syncs every change to its append-only file. The backup is saved, all
data and files are deleted, and the backup is restored, by the program that operators run. Everything is compared byte
for byte, and a difference ends the program with an error.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis
import torch
from reports import table, write_section
from safetensors.torch import save

from sagittal.explain.concepts import SRAE
from sagittal.process.embedded import EmbeddedValkey
from sagittal.queue.scripts import root_key
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage, examples_file, weights_file
from sagittal.registry.concept_sets import StoredConceptSet, WorkerConceptSets, split_examples
from sagittal.registry.redis import RedisModelRegistry
from sagittal.v1 import concept_pb2, model_pb2

#: Sizes of a concept set's network: features of the model, x-features, classes, hidden units.
NETWORK = (1280, 8, 4, 100)

#: Examples of each x-feature, and the bytes of the JPEG of each.
EXAMPLES, JPEG = 16, 8_000

TENANTS, LABELS = 10, 1_000

#: Longest time of a program, in seconds.
PATIENCE = 600.0


async def register(settings: QueueSettings, count: int) -> None:
    """Registers models as over the API."""
    registry = RedisModelRegistry(settings)
    labels = [f"a label of usual length, {number}" for number in range(LABELS)]
    for number in range(count):
        model = model_pb2.Model(name=f"model-{number}", version="1", labels=labels)
        model.source.kind = "torchvision"
        await registry.register(model, latest=True)
    await registry.close()


def store_sets(settings: QueueSettings, storage: ConceptStorage, count: int) -> None:
    """Stores concept sets as a worker does after a fit."""
    sets = WorkerConceptSets(settings, ConceptFiles(storage), max_tenant_bytes=2**40)
    network = SRAE(*NETWORK)
    for number in range(count):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
        weights = save(network.state_dict())
        document, examples = split_examples(_described(number))
        name = weights_file(weights)
        stored = StoredConceptSet(description=document, weights=name, examples=examples_file(examples, name))
        sets.write_files({stored.weights: weights, stored.examples: examples})
        sets.import_set(f"tenant-{number % TENANTS}", stored, len(weights) + len(examples))
    sets.close()


def _described(number: int) -> concept_pb2.ConceptSet:
    described = concept_pb2.ConceptSet(name=f"set-{number}", model=f"model-{number}", model_digest="d" * 64)
    for index in range(NETWORK[1]):
        concept = described.concepts.add(index=index)
        for _ in range(EXAMPLES):
            concept.examples.add(value=1.0).image.encoded = os.urandom(JPEG)  # a JPEG is not compressed either
    return described


def content(settings: QueueSettings, directory: Path) -> Mapping[str, Any]:
    """Returns what a backup must bring back: hashes, documents of concept sets, and files."""
    root = root_key(settings)
    with redis.Redis.from_url(settings.url) as client:
        found: dict[str, Any] = {name: client.hgetall(root + name) for name in ("declared", "latest", "origins")}
        for key in client.scan_iter(match=f"{root}concept:*"):
            found[key.decode()] = client.hmget(key, ["document", "weights", "examples", "bytes"])
    return found | {file.name: file.read_bytes() for file in (directory / "files").iterdir()}


def run(settings: QueueSettings, directory: Path, *arguments: str) -> float:
    """Runs the program as an operator does; returns its seconds."""
    variables = {"SAGITTAL_QUEUE__URL": settings.url, "SAGITTAL_CONCEPTS__DIRECTORY": str(directory)}
    command = [sys.executable, "-m", "sagittal.registry.backup", *arguments]
    began = time.monotonic()
    subprocess.run(command, check=True, env=os.environ | variables, timeout=PATIENCE)
    return time.monotonic() - began


def measure(models: int, sets: int) -> str:
    """Returns the report. Raises RuntimeError if something is not back byte for byte."""
    with tempfile.TemporaryDirectory() as name, EmbeddedValkey(f"{name}/valkey", persist=True) as valkey:
        directory, backup = Path(name) / "concepts", Path(name) / "backup"
        settings = QueueSettings(url=valkey.url)
        asyncio.run(register(settings, models))
        store_sets(settings, ConceptStorage(directory=directory), sets)
        before = content(settings, directory)
        saved = run(settings, directory, "save", str(backup))
        with redis.Redis.from_url(valkey.url) as client:
            client.flushall()
        for file in (directory / "files").iterdir():
            file.unlink()
        restored = run(settings, directory, "restore", str(backup))
        if content(settings, directory) != before:
            raise RuntimeError("what was restored differs from what was saved")
        size = backup.stat().st_size / 2**20
    header = ["models", "concept sets", "backup, MiB", "saved in, s", "restored in, s"]
    return table(header, [[models, sets, f"{size:.0f}", f"{saved:.1f}", f"{restored:.1f}"]])


def main() -> None:
    """Measures, and prints or writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    report = measure(options.models, options.sets)
    print(report)
    if options.write:
        write_section(options.write, "backup", report)


if __name__ == "__main__":
    main()
