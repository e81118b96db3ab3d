"""`sagittal-kserve`: serves explanations to KServe until SIGTERM, with a queue and a worker inside or elsewhere."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import structlog
import uvicorn
from starlette.applications import Starlette

from sagittal.cli.failures import Failure
from sagittal.cli.stack import LocalStack, Plan, free_ports
from sagittal.client import TLS, AsyncClient, SagittalError
from sagittal.client.registration import ModelTable
from sagittal.core.models import InvalidModelFile
from sagittal.kserve.explainer import Explainer
from sagittal.kserve.loading import Loading, model_table
from sagittal.kserve.rest import make_app
from sagittal.kserve.rpc import make_server
from sagittal.kserve.settings import KServeSettings, read_arguments
from sagittal.process.logs import configure_logging
from sagittal.process.settings import UnusableSettings
from sagittal.process.starting import STOPPING
from sagittal.process.supervision import Supervisor

#: Exit codes: stopped on request; a process of the container cannot run; invalid setting.
EXIT_OK, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 2

#: Interval of checks whether the processes of the container run, and whether this one is asked to stop, in seconds.
LOOK_SECONDS = 0.2

#: Simultaneous requests over HTTP, and over gRPC; further ones are refused.
MAX_CALLS = 200

_log = structlog.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the explainer and returns its exit code."""
    try:
        settings = read_arguments(sys.argv[1:] if arguments is None else arguments)
        table = model_table(settings)
    except (UnusableSettings, InvalidModelFile) as error:
        sys.stderr.write(f"sagittal-kserve: {error}\n")
        return EXIT_SETTINGS
    configure_logging(settings.log_format, settings.log_level)
    try:
        with _sagittal(settings) as (address, stack):
            asyncio.run(_Program(settings, table, stack).run(address))
    except Failure as error:
        _log.error("kserve-failed", error=error.format_message())
        return EXIT_FAILED
    except (SagittalError, OSError) as error:  # the address, the token or a file of an existing Sagittal
        sys.stderr.write(f"sagittal-kserve: {error}\n")
        return EXIT_SETTINGS
    return EXIT_OK


@contextmanager
def _sagittal(settings: KServeSettings) -> Iterator[tuple[str, LocalStack | None]]:
    """Yields the address of the Sagittal to use, and its processes if they are this container's."""
    if settings.sagittal_address:
        yield settings.sagittal_address, None
        return
    plan = Plan(
        listen=f"127.0.0.1:{free_ports(1)[0]}",
        service_metrics=0,
        worker_metrics=0,
        models_file=None,
        state=settings.state,
        worker={"SAGITTAL_SOURCES__SERVERS": json.dumps({settings.sagittal_server: predictor_server(settings)})},
    )
    with LocalStack(plan) as stack:
        yield plan.listen, stack


def predictor_server(settings: KServeSettings) -> dict[str, object]:
    """Returns the predictor as a server in the settings of the worker."""
    return {
        "address": "{host}",
        "hosts": [settings.predictor_address],
        "protocol": "grpc" if settings.predictor_protocol == "grpc-v2" else "http",
        "tls": settings.predictor_use_ssl,
        "ca_file": None if settings.predictor_ca is None else str(settings.predictor_ca),
        "timeout": settings.predictor_request_timeout_seconds,
        "concurrency": settings.predictor_concurrency,
    }


class _Program:
    """The servers of this process, and what runs beside them."""

    def __init__(self, settings: KServeSettings, table: ModelTable | None, stack: LocalStack | None) -> None:
        self._settings = settings
        self._table = table
        self._stack = stack

    async def run(self, address: str) -> None:
        """Serves until SIGTERM or SIGINT. Raises Failure if a process of the container cannot run."""
        settings = self._settings
        async with _connect(settings, address) as client:
            loading = Loading(client, self._table, settings.sagittal_model)
            explainer = Explainer(
                client, loading, method=settings.method, wait=settings.wait, max_instances=settings.max_instances
            )
            supervisor = Supervisor()
            keeping = supervisor.start_task("model", loading.keep)
            http = self._http(make_app(explainer, loading, settings.model_name))
            async with self._grpc(explainer, loading):
                ports = {"http": settings.http_port, "grpc": settings.grpc_port}
                _log.info("kserve-started", model=settings.model_name, sagittal=address, **ports)
                await self._serve(http, explainer)
            await supervisor.stop_task(keeping)
        _log.info("kserve-stopped")

    async def _serve(self, http: uvicorn.Server, explainer: Explainer) -> None:
        """Serves until the end, at which requests that wait for a job are answered."""
        for number in STOPPING:  # uvicorn handles them, and raises them again when it has ended
            signal.signal(number, lambda *_: None)
        serving, tending = asyncio.create_task(http.serve()), asyncio.create_task(self._tend(http))
        await asyncio.wait({serving, tending}, return_when=asyncio.FIRST_COMPLETED)
        http.should_exit = True
        explainer.stop_waiting()
        await serving
        await tending

    async def _tend(self, http: uvicorn.Server) -> None:
        """Watches the processes of the container until the server is asked to stop. Raises Failure."""
        while not http.should_exit:
            if self._stack is not None:
                self._stack.tend(lambda text: _log.warning("process-ended", text=text))
            await asyncio.sleep(LOOK_SECONDS)

    def _http(self, app: Starlette) -> uvicorn.Server:
        return uvicorn.Server(
            uvicorn.Config(
                app,
                host=self._settings.listen_host,
                port=self._settings.http_port,
                timeout_graceful_shutdown=self._settings.drain,
                limit_concurrency=MAX_CALLS,
                server_header=False,
                access_log=False,
                log_config=None,
                lifespan="off",
            )
        )

    @asynccontextmanager
    async def _grpc(self, explainer: Explainer, loading: Loading) -> AsyncIterator[None]:
        if not self._settings.grpc_port:
            yield
            return
        server = make_server(explainer, loading, self._settings.model_name, max_calls=MAX_CALLS)
        server.add_insecure_port(f"{self._settings.listen_host}:{self._settings.grpc_port}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(self._settings.drain)


def _connect(settings: KServeSettings, address: str) -> AsyncClient:
    """Returns a connection to Sagittal. Raises InvalidRequest if the address, token or certificate is unusable."""
    token = settings.sagittal_token_file.read_text().strip() if settings.sagittal_token_file else ""
    tls = TLS(root_certificates=settings.sagittal_ca) if settings.sagittal_ca else None
    return AsyncClient(address, token=token, tls=tls)


if __name__ == "__main__":
    sys.exit(main())
