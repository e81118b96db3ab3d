"""Models that run elsewhere, on a server that speaks the Open Inference Protocol v2 over gRPC."""

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
"""Types in which images can travel."""

DEFAULT_BATCH = 4
"""Images in a call where nothing says more: 2.3 MiB at 224 pixels, within the 4 MiB that servers take by default."""

_SCALES = {"UINT8": 255.0}


class Remote(Source):
    """A model deployed on KServe, Triton, MLServer, Ray Serve or another server of the protocol."""

    server: str
    """Name of the server in the operator's settings."""
    model: str
    """Name of the model on it."""
    version: str = ""
    """Version of the model on it. Empty lets the server choose."""
    input: str = ""
    """Name of the input. Empty: the only one that the server tells of."""
    output: str = ""
    """Name of the output with the scores. Empty: the only one."""
    datatype: Literal["", "FP32", "FP16", "UINT8"] = ""
    """Type in which images travel. Empty: what the server tells, else FP32."""
    layout: Literal["", "NCHW", "NHWC"] = ""
    """Order of the input's dimensions. Empty: by where the server tells of 3 channels, else NCHW."""
    scale: float | None = None
    """What the preprocessed values are multiplied with. Not set: 255 for UINT8, else 1."""
    max_batch: int = Field(default=0, ge=0, le=4096)
    """Most images in a call. 0: 4, or what the server's shape fixes."""

    def load(self, access: Access) -> Sourced:
        """Returns the model, once its server says that it is ready. Raises ModelUnavailable."""
        server = access.servers.get(self.server)
        if server is None:
            known = ", ".join(sorted(access.servers)) or "none"
            raise ModelUnavailable(
                f"source.server: there is no server {self.server!r}; SAGITTAL_SOURCES__SERVERS lists: {known}"
            )
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
            raise ModelUnavailable(f"server {self.server} says that its model {self.model} is not ready")
        return client.describe(self.model, self.version)

    def _deployment(self, described: pb.ModelMetadataResponse) -> Deployment:
        told = _pick(described.inputs, self.input, "input", needed=True)
        shape = list(told.shape) if told is not None else []
        if shape and len(shape) != 4:
            raise ModelUnavailable(f"the model takes {self.input or 'input'} of shape {shape}; expected 4 dimensions")
        datatype = self.datatype or (told.datatype if told is not None else "") or "FP32"
        if datatype not in DATATYPES:
            raise ModelUnavailable(f"the model takes {datatype}; images travel as {', '.join(DATATYPES)}")
        output = _pick(described.outputs, self.output, "output", needed=False)
        fixed = shape[0] if shape and shape[0] > 0 else 0
        return Deployment(
            server=self.server,
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
            f"asks {deployment.model} on {deployment.server}: {form.name} as {form.datatype} {layout}, "
            f"{deployment.max_batch} images in a call, {concurrency} calls at once",
        )


def _pick(tensors: Tensors, name: str, what: str, *, needed: bool) -> pb.ModelMetadataResponse.TensorMetadata | None:
    """Returns the tensor of a name, or the only one; None where the server tells of none."""
    names = [tensor.name for tensor in tensors]
    if name in names:
        return tensors[names.index(name)]
    if not names and (name or not needed):
        return None
    if name or len(names) != 1:
        told = f"has the {what}s {', '.join(names)}" if names else f"does not tell of its {what}s"
        raise ModelUnavailable(f"source.{what} is {name!r}, and the model {told}: give one of its names")
    return tensors[0]


def _is_channels_last(layout: str, shape: Sequence[int]) -> bool:
    if layout:
        return layout == "NHWC"
    return len(shape) == 4 and shape[1] != 3 and shape[3] == 3
