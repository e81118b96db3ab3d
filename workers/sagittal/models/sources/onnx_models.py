"""ONNX models (extra `onnx`): converted to PyTorch with gradients if the results agree, otherwise run in onnxruntime.

A conversion writes Python code with names from the file. Nodes are therefore renamed first, and a file is not converted
if names of tensors could be code.

Libraries follow references of tensors to other files, relative to the working directory. Such references are refused
anywhere in a file, and the libraries get the model as it was read and checked, never the file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sagittal.engine.evaluator import BlackBox, EvaluationFailed, Images, Outputs
from sagittal.engine.optimise import Step
from sagittal.models.sources.access import Access
from sagittal.models.sources.files import Reference, file_digest, open_weights
from sagittal.models.sources.source import ModelUnavailable, Source, Sourced, need

EXTRA = "onnx"

PROBE_IMAGES = 3
"""Number of images of noise that check a conversion; it is no multiple of the fixed batch sizes of common files."""

PROBE_SIDE = 224
"""Side of the probe in pixels if the model does not fix it."""

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""Tolerance between the outputs of a conversion and those of onnxruntime."""

_NAME = re.compile(r"[A-Za-z0-9_./:+-]*")
"""Names of tensors that are plain names in Python code."""

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class Onnx(Source):
    """An ONNX file: a classifier with one image input (n, 3, height, width)."""

    file: Reference
    """The file, in one piece: tensors in other files are not read."""
    output: str = ""
    """Name of the output with the scores. Empty for the only output."""
    runtime: Literal["auto", "torch", "onnxruntime"] = "auto"
    """`torch` requires the conversion, `onnxruntime` skips it; `auto` converts if the results agree."""

    def load(self, access: Access) -> Sourced:
        """Returns the model. Raises ModelUnavailable."""
        path = open_weights(self.file, access)
        model = read_model(path)
        running = OnnxModel(model.SerializeToString(), path, self.output)
        if self.runtime == "onnxruntime":
            return Sourced(running)
        try:
            module, detail = convert(model, running)
        except NotConverted as reason:
            if self.runtime == "torch":
                raise ModelUnavailable(f"{path} cannot be converted: {reason}") from reason
            return Sourced(running, (Step("onnx2torch", False, f"{reason}; it runs {running.where}"),))
        return Sourced(module, (Step("onnx2torch", True, detail),))


class NotConverted(Exception):
    """A model cannot be converted to PyTorch; the message states why."""


class OnnxModel(BlackBox):
    """A model in onnxruntime."""

    def __init__(self, serialized: bytes, path: Path, output: str) -> None:
        """Raises ModelUnavailable if onnxruntime cannot run the model, or if it does not have a single image input.

        Args:
            serialized: The model, as checked by `read_model`.
            path: The file that it was read from.
            output: Name of the output with the scores; empty for the only output.
        """
        runtime: Any = need("onnxruntime", extra=EXTRA)
        super().__init__(where="in onnxruntime", identity=f"{file_digest(path)} {output}", in_process=True)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        wished = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [one for one in wished if one in runtime.get_available_providers()]
        try:
            self._session = runtime.InferenceSession(serialized, options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelUnavailable(f"{path}: onnxruntime cannot run it: {_first_line(error)}") from error
        self._input = _image_input(self._session, path)
        self.output = _score_output(self._session, output, path)
        batch = self._input.shape[0]
        self.fixed_batch = batch if isinstance(batch, int) else 0

    @property
    def probe(self) -> Images:
        """Images of noise in the model's input shape."""
        height, width = (side if isinstance(side, int) else PROBE_SIDE for side in self._input.shape[2:])
        return np.random.default_rng(0).standard_normal((PROBE_IMAGES, 3, height, width), dtype=np.float32)

    def answer(self, images: Images) -> Outputs:
        """Returns the outputs of images. Raises EvaluationFailed."""
        if not self.fixed_batch:
            return self._run(images)
        step = self.fixed_batch
        pieces = [self._run_padded(images[start : start + step]) for start in range(0, len(images), step)]
        return np.concatenate(pieces)

    def _run_padded(self, images: Images) -> Outputs:
        missing = self.fixed_batch - len(images)
        padded = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
        return self._run(padded)[: len(images)]

    def _run(self, images: Images) -> Outputs:
        try:
            (outputs,) = self._session.run([self.output], {self._input.name: images.astype(_TYPES[self._input.type])})
        except Exception as error:
            raise EvaluationFailed(f"onnxruntime failed: {_first_line(error)}") from error
        return np.asarray(outputs, dtype=np.float32)


def _image_input(session: Any, path: Path) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
        raise ModelUnavailable(f"{path} has the inputs {found}; expected one of numbers, (n, 3, height, width)")
    return inputs[0]


def _score_output(session: Any, name: str, path: Path) -> str:
    names = [output.name for output in session.get_outputs()]
    if name in names:
        return name
    if name or len(names) != 1:
        raise ModelUnavailable(
            f"source.output is {name!r}, and {path} has the outputs {', '.join(names)}: set one of these"
        )
    return str(names[0])


def read_model(path: Path) -> Any:
    """Returns the checked model of a file, without unknown fields. Raises ModelUnavailable."""
    onnx: Any = need("onnx", extra=EXTRA)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        model.DiscardUnknownFields()  # another library may interpret them
        if elsewhere := next((tensor for tensor in _tensors(model) if _lies_elsewhere(tensor)), None):
            raise ModelUnavailable(
                f"{path} keeps tensors in other files, such as {elsewhere.name or 'a constant without a name'!r}; "
                "save it in one piece"
            )
        onnx.checker.check_model(model)
    except ModelUnavailable:
        raise
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise ModelUnavailable(f"{path} is no ONNX model, or is damaged: {_first_line(error)}") from error
    return model


def _tensors(message: Any) -> Iterator[Any]:
    """Yields every tensor anywhere in a message: initializers, constants, sparse tensors, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                yield from _tensors(part)


def _lies_elsewhere(tensor: Any) -> bool:
    return bool(tensor.data_location or tensor.external_data)


def convert(model: Any, running: OnnxModel) -> tuple[nn.Module, str]:
    """Returns a model converted to PyTorch, and a description of its accuracy. Raises NotConverted."""
    onnx2torch: Any = need("onnx2torch", extra=EXTRA)
    _make_names_harmless(model, running.output)
    try:
        module: nn.Module = onnx2torch.convert(model).eval()
        probe = running.probe
        with torch.inference_mode():
            outputs = module(torch.from_numpy(probe)).numpy()
    except Exception as error:  # the conversion of foreign graphs may raise anything
        raise NotConverted(f"onnx2torch: {type(error).__name__}: {_first_line(error)}") from error
    expected = running.answer(probe)
    if outputs.shape != expected.shape or not np.allclose(outputs, expected, RELATIVE, ABSOLUTE):
        raise NotConverted("the outputs of onnx2torch differ from those of onnxruntime")
    difference = float(np.abs(outputs - expected).max())
    return module, f"converted to PyTorch; outputs within {difference:.1e} of onnxruntime"


def _make_names_harmless(model: Any, output: str) -> None:
    graph = model.graph
    if len(graph.output) != 1:
        kept = [one for one in graph.output if one.name == output]
        del graph.output[:]
        graph.output.extend(kept)
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    names += [tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)]
    if unfit := [name for name in names if not _NAME.fullmatch(name)]:
        raise NotConverted(f"the tensor name {unfit[0]!r} is not a plain name")
    for index, node in enumerate(graph.node):
        node.name = f"node_{index}"
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise NotConverted(f"its {node.op_type} contains a subgraph")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
