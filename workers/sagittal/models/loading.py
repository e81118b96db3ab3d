"""Loading a model: from an entry to something that the engine can run, with what was found out about it."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sagittal.core.labels import read_labels
from sagittal.engine.evaluator import PROBABILITIES, TorchEvaluator
from sagittal.engine.optimise import Step, optimise
from sagittal.models.entry import ModelEntry
from sagittal.models.sources import ModelUnavailable, load_source

PROBE_IMAGES = 4
"""Images of noise on which optimisations are checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found about a model when it was loaded."""

    classes: int
    supports_gradients: bool
    spatial_layers: tuple[str, ...]
    """Layers whose output is (n, channels, height, width) with more than one pixel, in order of execution."""
    feature_layers: tuple[str, ...]
    """Layers whose output is (n, features), in order of execution."""
    steps: tuple[Step, ...]
    """What was done to make it faster."""
    batch_size: int
    evaluations_per_second: float
    gradient_evaluations_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model on a device, ready for the engine."""

    entry: ModelEntry
    digest: str
    """SHA-256 over weights and preprocessing, in hexadecimal."""
    labels: Sequence[str]
    evaluator: TorchEvaluator
    found: Found
    load_seconds: float = field(default=0.0)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.evaluator.device


def load(entry: ModelEntry, device: torch.device, *, batch_size: int = 0) -> LoadedModel:
    """Loads a model, makes it faster and finds out what it can do.

    Args:
        entry: What to load.
        device: Where to run it.
        batch_size: Most masked images in a batch; 0 finds one.

    Raises:
        ModelUnavailable: it cannot be loaded, or does not classify images of the size that its preprocessing makes.
    """
    started = time.monotonic()
    module = load_source(entry.source).eval().requires_grad_(False)
    digest = model_digest(module, entry)
    module = module.to(device)
    probe = _probe(entry, device)
    classes = _classes(module, probe)
    labels = _labels(entry, classes)
    evaluator, steps = _evaluator(module, entry, probe, classes)
    gradients = _gradients_flow(evaluator, probe)
    evaluator.supports_gradients = gradients
    spatial, flat = _layers(module, probe)
    evaluator.quantum = find_quantum(evaluator, probe)
    found = Found(
        classes=classes,
        supports_gradients=gradients,
        spatial_layers=spatial,
        feature_layers=flat,
        steps=tuple(steps),
        batch_size=batch_size or default_batch_size(device),
        evaluations_per_second=_throughput(evaluator, probe, gradient=False),
        gradient_evaluations_per_second=_throughput(evaluator, probe, gradient=True) if gradients else 0.0,
    )
    seconds = time.monotonic() - started
    return LoadedModel(
        entry=entry, digest=digest, labels=labels, evaluator=evaluator, found=found, load_seconds=seconds
    )


def default_batch_size(device: torch.device) -> int:
    """Returns a batch size that suits the kind of device."""
    return 16 if device.type == "cpu" else 128


def choose_device(wish: str = "") -> torch.device:
    """Returns the device that is wished for, or the best there is. Raises ModelUnavailable where it is not there."""
    if not wish:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelUnavailable(f"the device {wish!r} is not there: {str(error).splitlines()[0]}") from error
    return device


def model_digest(module: nn.Module, entry: ModelEntry) -> str:
    """Returns SHA-256 over names, shapes and values of all weights, and over preprocessing and output."""
    digest = hashlib.sha256(f"{entry.preprocessing.model_dump_json()} {entry.output.value} {type(module)}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _probe(entry: ModelEntry, device: torch.device) -> Tensor:
    size = entry.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PROBE_IMAGES, 3, size, size, generator=generator).to(device)


def _classes(module: nn.Module, probe: Tensor) -> int:
    try:
        with torch.inference_mode():
            outputs = module(probe)
    except Exception as error:
        side = probe.shape[-1]
        raise ModelUnavailable(f"the model fails on an input of {side}x{side} pixels: {error}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ModelUnavailable(f"the model returns {type(outputs).__name__}; expected a tensor (images, classes)")
    return int(outputs.shape[1])


def _labels(entry: ModelEntry, classes: int) -> Sequence[str]:
    if isinstance(entry.labels, list):
        labels: Sequence[str] = entry.labels
    else:
        try:
            labels = read_labels(entry.labels)
        except OSError as error:
            raise ModelUnavailable(f"the labels {entry.labels} cannot be read: {error.strerror}") from error
    if labels and len(labels) != classes:
        raise ModelUnavailable(f"there are {len(labels)} labels for {classes} classes")
    return labels


def _evaluator(module: nn.Module, entry: ModelEntry, probe: Tensor, classes: int) -> tuple[TorchEvaluator, list[Step]]:
    fast, channels_last, steps = optimise(module, probe, PROBABILITIES[entry.output])
    evaluator = TorchEvaluator(
        module=fast,
        inspected=module,
        device=probe.device,
        output=entry.output,
        channels_last=channels_last,
        autocast=_reduced_precision(probe.device),
        classes=classes,
    )
    return evaluator, steps


def _reduced_precision(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _gradients_flow(evaluator: TorchEvaluator, probe: Tensor) -> bool:
    inputs = probe[:1].clone().requires_grad_()
    try:
        with torch.enable_grad():
            scores = PROBABILITIES[evaluator.output](evaluator.module(inputs))
            (gradient,) = torch.autograd.grad(scores.amax(), inputs)
    except RuntimeError:
        return False
    return bool(torch.isfinite(gradient).all())


def _layers(module: nn.Module, probe: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of layers with a spatial and with a flat output, in order of execution."""
    outputs: dict[str, torch.Size] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.shape

        return hook

    named = [(name, layer) for name, layer in module.named_modules() if name]
    handles = [layer.register_forward_hook(note(name)) for name, layer in named]
    try:
        with torch.inference_mode():
            module(probe[:1])
    finally:
        for handle in handles:
            handle.remove()
    spatial = tuple(name for name, shape in outputs.items() if len(shape) == 4 and shape[-1] * shape[-2] > 1)
    flat = tuple(name for name, shape in outputs.items() if len(shape) == 2)
    return spatial, flat


def find_quantum(evaluator: TorchEvaluator, probe: Tensor, candidates: Sequence[int] = (1, 2, 4, 8)) -> int:
    """Returns the smallest quantum at which rows are the same in any batch, to the last bit; 1 where there is none."""
    rows = probe.repeat(4, 1, 1, 1)[: 2 * max(candidates)]
    rows = rows + torch.linspace(0, 1, len(rows), device=rows.device).view(-1, 1, 1, 1)
    whole = _outputs(evaluator, rows)
    for quantum in candidates:
        pieces = [_outputs(evaluator, piece) for piece in torch.split(rows, quantum)]
        if torch.equal(torch.cat(pieces), whole):
            return quantum
    return 1


def _outputs(evaluator: TorchEvaluator, inputs: Tensor) -> Tensor:
    if evaluator.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return evaluator.module(inputs)  # type: ignore[no-any-return]


def _throughput(evaluator: TorchEvaluator, probe: Tensor, *, gradient: bool) -> float:
    """Returns images a second on the probe, measured once after a warm-up: orientation, not a benchmark."""

    def run() -> None:
        inputs = probe.clone().requires_grad_(gradient)
        if evaluator.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(not gradient), torch.set_grad_enabled(gradient):
            outputs = PROBABILITIES[evaluator.output](evaluator.module(inputs))
            if gradient:
                torch.autograd.grad(outputs[:, 0].sum(), inputs)

    run()
    started = time.monotonic()
    run()
    if probe.device.type == "cuda":
        torch.cuda.synchronize(probe.device)
    return len(probe) / max(time.monotonic() - started, 1e-9)


def set_threads(count: int) -> None:
    """Sets the threads that PyTorch computes with on the CPU; 0 takes one for each processor that may be used."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))


def weights_bytes(module: nn.Module) -> int:
    """Returns the bytes that a module's weights take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
