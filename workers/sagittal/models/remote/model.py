"""A deployed model as the engine sees it: a batch goes out as several calls at once, and comes back in order."""

import hashlib
import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from sagittal.engine.black_box import BlackBox, Images, Outputs
from sagittal.engine.evaluator import EvaluationFailed
from sagittal.models.remote.client import InferenceClient
from sagittal.models.remote.tensors import Form, read_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on a server."""

    server: str
    """Name of the server, as the operator's settings have it."""
    model: str
    version: str
    """Empty lets the server choose."""
    output: str
    """Name of the output with the scores; empty for the only one."""
    form: Form
    max_batch: int
    """Most images in a call."""
    fixed_batch: bool
    """Whether a call must have exactly so many."""


class RemoteModel(BlackBox):
    """Asks a deployed model, with a bounded number of calls in flight."""

    def __init__(self, deployment: Deployment, client: InferenceClient, *, concurrency: int, described: bytes) -> None:
        """Asks nothing yet.

        Args:
            deployment: The model.
            client: Connection to its server; closed when this model goes.
            concurrency: Most calls in flight.
            described: What the server says of the model, for its digest.
        """
        known = json.dumps(asdict(deployment), sort_keys=True).encode()
        super().__init__(
            where=f"on server {deployment.server}",
            identity=hashlib.sha256(known + described).hexdigest(),
            batch_size=deployment.max_batch * concurrency,
        )
        self._deployment = deployment
        self._client = client
        self._answered_by = ""
        self._calls = ThreadPoolExecutor(concurrency, thread_name_prefix=f"ask-{deployment.server}")
        weakref.finalize(self, _close, self._calls, client)

    def answer(self, images: Images) -> Outputs:
        """Returns the outputs of images. Raises EvaluationFailed."""
        step = self._deployment.max_batch
        pieces = [images[start : start + step] for start in range(0, len(images), step)]
        if len(pieces) == 1:
            return self._ask(pieces[0])
        # map starts all calls, and the first failure is raised once those before it are back
        return np.concatenate(list(self._calls.map(self._ask, pieces)))

    def _ask(self, images: Images) -> Outputs:
        deployment, count = self._deployment, len(images)
        if deployment.fixed_batch and (missing := deployment.max_batch - count):
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        request = deployment.form.request(
            images, model=deployment.model, version=deployment.version, output=deployment.output
        )
        response = self._client.infer(request)
        self._check_version(response.model_version)
        return read_outputs(response, output=deployment.output, images=len(images))[:count]

    def _check_version(self, version: str) -> None:
        """Refuses answers of another version than the one that was loaded: an explanation is of one model."""
        if version and not self._answered_by:
            self._answered_by = version
        if version and version != self._answered_by:
            raise EvaluationFailed(
                f"{self.where}, version {version} answers now instead of {self._answered_by}: load the model again"
            )


def _close(calls: ThreadPoolExecutor, client: InferenceClient) -> None:
    calls.shutdown(wait=False, cancel_futures=True)
    client.close()
