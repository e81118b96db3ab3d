"""The explainer before a service that follows a script."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from scripted_service import OPTIONS, Script, served

from sagittal.client import AsyncClient
from sagittal.kserve.explainer import Explainer
from sagittal.kserve.loading import Loading
from sagittal.kserve.rest import make_app
from sagittal.v1 import model_pb2

READY = model_pb2.WorkerModel(worker="w", state=model_pb2.MODEL_STATE_READY)


@dataclass
class Called:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Api:
    """The explainer with its application, and the script of its service."""

    script: Script
    client: AsyncClient
    loading: Loading
    explainer: Explainer

    async def call(self, method: str, path: str, body: bytes | object = b"", **headers: str) -> Called:
        """Calls the application as an HTTP server does."""
        path, _, query = path.partition("?")
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": content}

        async def send(message: Any) -> None:
            sent.append(message)

        await make_app(self.explainer, self.loading, "lamp")(scope, receive, send)
        start, *parts = sent
        told = {name.decode(): value.decode() for name, value in start["headers"]}
        return Called(start["status"], told, b"".join(part.get("body", b"") for part in parts))

    async def explain(self, body: bytes | object, query: str = "", **headers: str) -> Called:
        """Posts to `:explain`."""
        return await self.call("POST", f"/v1/models/lamp:explain{query}", body, **headers)

    async def get_ready(self) -> None:
        """Lets the explainer find a ready worker."""
        self.script.model = model_pb2.Model(name="lamp", version="1", workers=[READY])
        await self.loading.look()
        assert self.loading.ready


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    script = Script()
    with served(script) as address:
        async with AsyncClient(address, options=OPTIONS) as client:
            loading = Loading(client, None, "lamp")
            explainer = Explainer(client, loading, method="rise", wait=2000.0, max_instances=4)
            found = Api(script, client, loading, explainer)
            await found.get_ready()
            yield found
