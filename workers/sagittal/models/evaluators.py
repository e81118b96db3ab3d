"""Construction of a model's evaluator: optimisation, and the choice of the batch size."""

import importlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sagittal.core.models import ModelEntry, Preprocessing
from sagittal.engine.cuda.acceleration import accelerate, modes_of, slot_seconds
from sagittal.engine.cuda.precision import reduced_type, require_full_precision
from sagittal.engine.evaluator import PROBABILITIES, BlackBox, BlackBoxEvaluator, Output, TorchEvaluator, bucket_sizes
from sagittal.engine.optimise import COMPILE, Step, optimise
from sagittal.engine.scoring import TOP, Mode
from sagittal.engine.task import STRETCHED
from sagittal.engine.timing import Variant
from sagittal.models.measuring import BatchPlan, KeptPlan, Throughput, batch_sizes, find_throughput, runs_small_cheaply
from sagittal.models.row_equality import RowEquality, find_equality, whole_quanta
from sagittal.models.sources import ModelUnavailable

COMPILED = RowEquality(
    equal=False,
    detail="each batch size is compiled or captured separately: results agree to a tolerance, not to the last bit",
)
"""Row equality of compiled and captured models, whose rows are not compared."""

GPU_PATIENCE = 12.0
"""Time for trying batch sizes on CUDA, in seconds: a pass of each size is captured first."""


def make_evaluator(
    module: nn.Module, entry: ModelEntry, probe: Tensor, *, classes: int, gradients: bool
) -> tuple[TorchEvaluator, Sequence[Step]]:
    """Returns the evaluator of a model on its device, optimised if possible, and the optimisation steps.

    Args:
        module: The model in evaluation mode.
        entry: Its registration.
        probe: Images of noise for the checks of the steps.
        classes: Number of its classes.
        gradients: Whether it returns gradients.
    """
    if isinstance(module, BlackBox):
        return _black_box_evaluator(module, entry, probe.device, classes)
    probabilities = PROBABILITIES[Output(entry.output)]
    on_card = probe.device.type == "cuda"
    if on_card:
        require_full_precision()
    autocast = reduced_type(probe.device) if on_card and not entry.device.full_precision else None
    fast, channels_last, steps = optimise(
        module, probe, probabilities, gradient=gradients, compiled=entry.device.compile, autocast=autocast
    )
    evaluator = TorchEvaluator(
        module=fast,
        inspected=module,
        device=probe.device,
        output=Output(entry.output),
        channels_last=channels_last,
        supports_gradients=gradients,
        classes=classes,
    )
    if on_card:
        steps = [*steps, *accelerate(evaluator, probe, full_precision=entry.device.full_precision)]
    return evaluator, steps


def _black_box_evaluator(
    module: BlackBox, entry: ModelEntry, device: torch.device, classes: int
) -> tuple[TorchEvaluator, Sequence[Step]]:
    evaluator = BlackBoxEvaluator(module=module, device=device, output=Output(entry.output), classes=classes)
    return evaluator, [Step("graph", False, f"the model runs {module.where}: there is no graph to change")]


def variant_of(evaluator: TorchEvaluator) -> Variant:
    """Returns the model as the evaluator runs it, for measurements."""
    return Variant(
        evaluator.reduced or evaluator.module,
        channels_last=evaluator.channels_last,
        gradient=evaluator.supports_gradients,
        autocast=evaluator.autocast,
    )


def suit_batches(
    evaluator: TorchEvaluator, probe: Tensor, *, compiled: bool, batch_size: int, kept: KeptPlan | None = None
) -> BatchPlan:
    """Configures the evaluator's batches, and returns the best batch size with the throughput.

    Args:
        evaluator: The model's evaluator.
        probe: Images of noise.
        compiled: Whether the model was compiled, which requires few batch sizes.
        batch_size: Maximum number of images in a batch; 0 measures the best.
        kept: The file that keeps the result between starts; None for none.
    """
    plan = kept.read() if kept is not None else None
    if plan is None:
        plan = _measured(evaluator, probe, compiled=compiled, batch_size=batch_size)
        if kept is not None:
            kept.write(plan)
    evaluator.quantum, evaluator.pads_small = plan.quantum, plan.pads_small
    if compiled or evaluator.graphs is not None:
        evaluator.buckets = bucket_sizes(plan.batch_size, STRETCHED)
        _warm(evaluator, probe.shape[1:])
    return plan


def _measured(evaluator: TorchEvaluator, probe: Tensor, *, compiled: bool, batch_size: int) -> BatchPlan:
    variant, sizes = variant_of(evaluator), batch_sizes(probe.device)
    compiled = compiled or evaluator.graphs is not None
    # A given size is not measured at its full size, which may be large.
    tried = [min(batch_size, sizes[0])] if batch_size else sizes
    if probe.device.type == "cuda":
        throughput = _measured_as_run(evaluator, variant, probe[:1], tried)
    else:
        throughput = find_throughput(variant, probe[:1], tried)
    batch_size = batch_size or throughput.batch_size
    equality = COMPILED if compiled else find_equality(evaluator, probe, replace(throughput, batch_size=batch_size))
    return BatchPlan(
        batch_size=whole_quanta(batch_size, equality.quantum),
        quantum=equality.quantum,
        pads_small=compiled or not runs_small_cheaply(variant, probe[:1], equality.quantum),
        equal_rows=equality.equal,
        equality=equality.detail,
        forward=throughput.forward,
        backward=throughput.backward,
    )


def _measured_as_run(evaluator: TorchEvaluator, variant: Variant, image: Tensor, sizes: Sequence[int]) -> Throughput:
    """Returns the throughput of passes as the evaluator runs them, captured if that is how."""
    evaluator.buckets = tuple(sizes)

    def seconds(passes: Variant, inputs: Tensor) -> float:
        modes = [Mode(gradient=gradient, reduced=evaluator.autocast is not None) for gradient in (False, True)]
        whole = 0.0
        for mode in modes if passes.gradient else modes[:1]:
            slot = evaluator.slot(len(inputs), image.shape[1:], mode)
            slot.inputs.copy_(inputs)
            slot.targets.fill_(TOP)
            slot.run()  # kernels are chosen in the first pass of a size
            whole += slot_seconds(slot)
        return whole

    try:
        return find_throughput(variant, image, sizes, seconds=seconds, patience=GPU_PATIENCE)
    finally:
        evaluator.buckets = ()
        if evaluator.graphs is not None:
            evaluator.graphs.clear()


def is_compiled(steps: Sequence[Step]) -> bool:
    """Returns whether the applied steps include compilation."""
    return any(step.name == COMPILE and step.applied for step in steps)


def _warm(evaluator: TorchEvaluator, shape: torch.Size) -> None:
    """Runs a batch of each size in each mode, so that it is compiled and captured before the first job.

    The largest comes first: smaller ones then fit into its memory.
    """
    for size in reversed(evaluator.buckets):
        for mode in modes_of(evaluator):
            slot = evaluator.slot(size, shape, mode)
            slot.inputs.zero_()
            slot.targets.fill_(TOP)
            slot.run()


class ChannelsLastInput(nn.Module):
    """A model with input (n, height, width, 3), wrapped for images of (n, 3, height, width)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns the model's outputs for images, (n, classes)."""
        return self.model(images.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def adapt(module: nn.Module, preprocessing: Preprocessing) -> nn.Module:
    """Returns a module that accepts channels first; a wrapper prefixes the names of layers with `model.`."""
    if preprocessing.layout == "NCHW":
        return module
    if isinstance(module, BlackBox):
        raise ModelUnavailable("preprocessing.layout: a remote or ONNX model takes NCHW; set NHWC in its source")
    return ChannelsLastInput(module)


def resolve_preset(preprocessing: Preprocessing) -> Preprocessing:
    """Returns the preprocessing with size, cropping and scale of its preset. Raises ModelUnavailable."""
    if not preprocessing.preset:
        return preprocessing
    models = importlib.import_module("torchvision.models")
    try:
        transform = models.get_weight(preprocessing.preset).transforms()
        said = {
            "input_size": int(transform.crop_size[0]),
            "resize": int(transform.resize_size[0]),
            "interpolation": str(transform.interpolation.value),
            "mean": tuple(transform.mean),
            "std": tuple(transform.std),
        }
    except (ValueError, AttributeError) as error:
        raise ModelUnavailable(
            f"preprocessing.preset: torchvision has no classification weights {preprocessing.preset!r}; give a name "
            f"such as ResNet50_Weights.IMAGENET1K_V2 ({error})"
        ) from error
    return preprocessing.model_copy(update=said)


def choose_place(entry: ModelEntry, device: torch.device) -> torch.device:
    """Returns the device of a model on a worker with this device. Raises ModelUnavailable if they are incompatible."""
    if entry.device.kind == "cpu":
        return torch.device("cpu")
    if entry.device.kind == "cuda" and device.type != "cuda":
        raise ModelUnavailable(f"the model requires cuda, and this worker runs on {device}; serve it on another worker")
    return device
