"""Concept sets for tests: small ones, and both sides of their store."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import torch

from sagittal.explain.concepts import SRAE
from sagittal.queue.settings import QueueSettings
from sagittal.registry.concept_files import ConceptFiles, ConceptStorage
from sagittal.registry.concept_sets import ConceptSets
from sagittal.v1 import concept_pb2
from sagittal.worker.concepts.store import ConceptSettings, ConceptStore, connect_concept_store

MOST = 2**24

Answer = TypeVar("Answer")


def a_set(name: str = "set", model: str = "model", digest: str = "d" * 64, count: int = 3) -> concept_pb2.ConceptSet:
    """Returns the description of a set with one example."""
    concepts = [concept_pb2.Concept(index=index) for index in range(count)]
    concepts[0].examples.add(value=1.0)
    return concept_pb2.ConceptSet(name=name, model=model, model_digest=digest, concepts=concepts)


def network() -> SRAE:
    """Returns a network whose parameters are known."""
    srae = SRAE(4, 3, 1, 2)
    with torch.no_grad():
        for number, parameter in enumerate(srae.parameters()):
            parameter.fill_(number + 1)
    return srae


class Concepts:
    """Both sides of a store of concept sets in a directory."""

    def __init__(self, settings: QueueSettings, directory: Path, *, most: int = MOST) -> None:
        self.directory = directory
        self.settings = settings
        self.most = most
        self.files = ConceptFiles(ConceptStorage(directory=directory))
        stored = ConceptSettings(directory=directory, max_tenant_bytes=most)
        self.worker: ConceptStore = connect_concept_store(stored, settings)

    async def ask(self, action: Callable[[ConceptSets], Awaitable[Answer]]) -> Answer:
        """Does something on the service's side."""
        sets = ConceptSets(self.settings, max_tenant_bytes=self.most)
        try:
            return await action(sets)
        finally:
            await sets.close()

    def seed(self, tenant: str, described: concept_pb2.ConceptSet) -> None:
        """Stores a set that no job fitted."""
        self.worker._sets.import_set(tenant, *self.worker._write(described, network().state_dict()))

    def names(self) -> list[str]:
        """Returns the names of the files that there are."""
        return sorted(path.name for path in self.directory.glob("files/*"))
