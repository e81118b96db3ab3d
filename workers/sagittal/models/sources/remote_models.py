"""Remote models, on a server of the Open Inference Protocol v2."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from sagittal.engine.evaluator import EvaluationFailed
from sagittal.engine.optimise import Step
from sagittal.inference.v2 import inference_pb2 as pb
from sagittal.models.remote.client import InferenceClient
from sagittal.models.remote.model import Deployment, Form, RemoteModel
from sagittal.models.sources.access import Access
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced

Tensors = Sequence[pb.ModelMetadataResponse.TensorMetadata]

DATATYPES = ("FP32", "FP16", "UINT8")
"""Encodings of images."""

DEFAULT_BATCH = 4
"""Default number of images per call: 2.3 MiB at 224 pixels, within the common server limit of 4 MiB."""

_SCALES = {"UINT8": 255.0}


class Remote(Source):
    """A model deployed on KServe, Triton, MLServer, Ray Serve or another server of the protocol."""

    server: str
    """Name of the server in the operator's settings."""
    host: str = ""
    """Host and port of the server, if its address in the settings has `{host}`."""
    model: str
    """Name of the model on the server."""
    version: str = ""
    """Version of the model on the server. Empty lets the server choose."""
    input: str = ""
    """Name of the input. Empty for the only input that the server reports."""
    output: str = ""
    """Name of the output with the scores. Empty for the only output."""
    datatype: Literal["", "FP32", "FP16", "UINT8"] = ""
    """Encoding of images. Empty for the type that the server reports, or else FP32."""
    layout: Literal["", "NCHW", "NHWC"] = ""
    """Order of the input's dimensions. Empty for the order in which the server reports 3 channels, or else NCHW."""
    scale: float | None = None
    """Factor of the preprocessed values. By default 255 for UINT8, and 1 otherwise."""
    max_batch: int = Field(default=0, ge=0, le=4096)
    """Maximum number of images per call. 0 for the size that the server's shape fixes, or else 4."""

    def load(self, access: Access) -> Sourced:
        """Returns the model if its server reports it as ready. Raises ModelUnavailable."""
        server = access.servers.get(self.server)
        if server is None:
            known = ", ".join(sorted(access.servers)) or "none"
            raise ModelUnavailable(
                f"source.server: there is no server {self.server!r}; SAGITTAL_SOURCES__SERVERS lists: {known}"
            )
        try:
            server = server.at(self.host)
        except ValueError as error:
            raise ModelUnavailable(f"source.host: {error}") from error
        client = InferenceClient(self.server, server)
        try:
            described = self._describe(client)
            deployment = self._deployment(described)
        except EvaluationFailed as error:
            client.close()
            raise ModelUnavailable(str(error)) from error
        except ModelUnavailable:
            client.close()
            raise
        model = RemoteModel(
            deployment,
            client,
            concurrency=server.concurrency,
            described=described.SerializeToString(deterministic=True),
        )
        return Sourced(model, (self._note(deployment, server.concurrency),))

    def _describe(self, client: InferenceClient) -> pb.ModelMetadataResponse:
        if not client.is_ready(self.model, self.version):
            raise ModelUnavailable(f"server {self.server} reports that its model {self.model} is not ready")
        return client.describe(self.model, self.version)

    def _deployment(self, described: pb.ModelMetadataResponse) -> Deployment:
        told = _pick(described.inputs, self.input, "input", needed=True)
        shape = list(told.shape) if told is not None else []
        if shape and len(shape) != 4:
            raise ModelUnavailable(f"the model takes {self.input or 'input'} of shape {shape}; expected 4 dimensions")
        datatype = self.datatype or (told.datatype if told is not None else "") or "FP32"
        if datatype not in DATATYPES:
            raise ModelUnavailable(f"the model takes {datatype}; images are sent as {', '.join(DATATYPES)}")
        output = _pick(described.outputs, self.output, "output", needed=False)
        fixed = shape[0] if shape and shape[0] > 0 else 0
        return Deployment(
            server=self.server,
            host=self.host,
            model=self.model,
            version=self.version,
            output=self.output or (output.name if output is not None else ""),
            form=Form(
                name=told.name if told is not None else self.input,
                datatype=datatype,
                channels_last=_is_channels_last(self.layout, shape),
                scale=self.scale if self.scale is not None else _SCALES.get(datatype, 1.0),
            ),
            max_batch=fixed or self.max_batch or DEFAULT_BATCH,
            fixed_batch=bool(fixed),
        )

    def _note(self, deployment: Deployment, concurrency: int) -> Step:
        form = deployment.form
        layout = "NHWC" if form.channels_last else "NCHW"
        return Step(
            "remote",
            True,
            f"calls {deployment.model} on {deployment.where}: {form.name} as {form.datatype} {layout}, "
            f"{deployment.max_batch} images per call, {concurrency} concurrent calls",
        )


def _pick(tensors: Tensors, name: str, what: str, *, needed: bool) -> pb.ModelMetadataResponse.TensorMetadata | None:
    """Returns the tensor of a name, or the only tensor; None if the server reports none."""
    names = [tensor.name for tensor in tensors]
    if name in names:
        return tensors[names.index(name)]
    if not names and (name or not needed):
        return None
    if name or len(names) != 1:
        told = f"has the {what}s {', '.join(names)}" if names else f"does not report its {what}s"
        raise ModelUnavailable(f"source.{what} is {name!r}, and the model {told}: give one of its names")
    return tensors[0]


def _is_channels_last(layout: str, shape: Sequence[int]) -> bool:
    if layout:
        return layout == "NHWC"
    return len(shape) == 4 and shape[1] != 3 and shape[3] == 3
