"""Loading a model: from an entry to something that the engine can run, with what was found out about it."""

import time
from collections.abc import Mapping, Sequence
from importlib import metadata

import torch
from torch import Tensor, nn

from sagittal.engine.black_box import BlackBox
from sagittal.engine.evaluator import PROBABILITIES, Output, TorchEvaluator
from sagittal.engine.optimise import Step
from sagittal.engine.timing import Variant
from sagittal.models.adapting import adapt, choose_place, resolve_preset
from sagittal.models.checking import Check, check_model
from sagittal.models.digests import model_digest
from sagittal.models.entry import ModelEntry
from sagittal.models.evaluators import is_compiled, make_evaluator, suit_batches, variant_of
from sagittal.models.loaded import Found, LoadedModel
from sagittal.models.plans import KeptPlan, device_name, kernel_settings
from sagittal.models.probing import SeenLayers, batch_bytes, input_limits, refusals, see_layers, sides_taken, view_of
from sagittal.models.registered import check_layers, check_weights, labels_of
from sagittal.models.row_equality import RowEquality
from sagittal.models.sources import EVERYTHING, Access, ModelUnavailable, load_source

PROBE_IMAGES = 4
"""Images of noise on which optimisations are checked."""


def load(entry: ModelEntry, device: torch.device, *, batch_size: int = 0, access: Access = EVERYTHING) -> LoadedModel:
    """Loads a model, makes it faster and finds out what it can do.

    Args:
        entry: What to load.
        device: Where to run it.
        batch_size: Most masked images in a batch; 0 finds one.
        access: What it may be loaded from.

    Raises:
        ModelUnavailable: it cannot be loaded, or does not classify images of the size that its preprocessing makes.
    """
    started = time.monotonic()
    device = choose_place(entry, device)
    entry = entry.model_copy(update={"preprocessing": resolve_preset(entry.preprocessing)})
    sourced = load_source(entry.source, access)
    module = sourced.module.eval().requires_grad_(False)
    weights, digest = check_weights(module, entry), model_digest(module, entry)
    if isinstance(module, BlackBox):
        batch_size = batch_size or module.batch_size
    module = adapt(module, entry.preprocessing).to(device)
    probe = _probe(entry, device)
    classes = _classes(module, probe)
    labels = labels_of(entry, classes, access)
    checks = _checked(module, entry, probe)
    gradients = _gradients_flow(module, probe)
    evaluator, steps = make_evaluator(module, entry, probe, classes=classes, gradients=gradients)
    seen = see_layers(module, probe)
    check_layers(entry.layers, seen)
    kept = _kept_plan(access, digest, evaluator, steps, probe, batch_size)
    plan = suit_batches(evaluator, probe, compiled=is_compiled(steps), batch_size=batch_size, kept=kept)
    equality = RowEquality(equal=plan.equal_rows, quantum=plan.quantum, detail=plan.equality)
    found = Found(
        classes=classes,
        supports_gradients=gradients,
        spatial_layers=seen.spatial,
        feature_layers=seen.flat,
        steps=(*sourced.notes, *steps, equality.step),
        batch_size=plan.batch_size,
        evaluations_per_second=plan.forward,
        gradient_evaluations_per_second=plan.backward,
        refused=_refused(module, entry, probe, seen) if gradients else {},
        patch_grid=seen.patch_grid,
        input_limits=_limits(module, probe, classes, seen),
        checks=tuple(checks),
        weights_digest=weights,
    )
    return LoadedModel(
        entry=entry,
        digest=digest,
        labels=labels,
        evaluator=evaluator,
        found=found,
        load_seconds=time.monotonic() - started,
        activation_bytes=batch_bytes(variant_of(evaluator), probe) * found.batch_size,
    )


def _kept_plan(
    access: Access, digest: str, evaluator: TorchEvaluator, steps: Sequence[Step], probe: Tensor, batch_size: int
) -> KeptPlan | None:
    """Returns where the model's batches are kept; None where there is no directory for it."""
    if access.cache is None:
        return None
    circumstances = {
        "model": digest,
        "steps": [step.name for step in steps if step.applied],
        "gradients": evaluator.supports_gradients,
        "autocast": str(evaluator.autocast),
        "side": int(probe.shape[-1]),
        "batch_size": batch_size,
        "device": device_name(probe.device),
        "threads": torch.get_num_threads(),
        "kernels": kernel_settings(),
        "torch": torch.__version__,
        "sagittal": metadata.version("sagittal"),
    }
    return KeptPlan(directory=access.cache, circumstances=circumstances)


def _refused(module: nn.Module, entry: ModelEntry, probe: Tensor, seen: SeenLayers) -> Mapping[str, str]:
    if not seen.spatial:
        return {}
    view = view_of(module, PROBABILITIES[Output(entry.output)], probe)
    return refusals(view, entry.layers.spatial)


def _checked(module: nn.Module, entry: ModelEntry, probe: Tensor) -> Sequence[Check]:
    """Returns the self-check. Raises ModelUnavailable where something that is required is not so."""
    checks = check_model(module, entry, probe)
    for check in checks:
        if check.required and not check.passed:
            raise ModelUnavailable(f"the self-check {check.name} failed: {check.detail}")
    return checks


def _limits(module: nn.Module, probe: Tensor, classes: int, seen: SeenLayers) -> tuple[int, int]:
    """Returns the smallest and the largest side of inputs; a model without layers to see is not tried with others."""
    if seen.spatial or seen.flat:
        return input_limits(module, probe, classes)
    own = int(probe.shape[-1])
    return own, own


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
        taken = ", ".join(map(str, sides_taken(module, probe.device)))
        remedy = f"; it takes inputs of {taken} pixels: set preprocessing.input_size to one" if taken else ""
        raise ModelUnavailable(f"the model fails on an input of {side}x{side} pixels: {error}{remedy}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ModelUnavailable(f"the model returns {type(outputs).__name__}; expected a tensor (images, classes)")
    return int(outputs.shape[1])


def _gradients_flow(module: nn.Module, probe: Tensor) -> bool:
    """Whether the score has a finite gradient with respect to the input."""
    try:
        _, gradient = Variant(module).backward(probe[:1])
    except RuntimeError:
        return False
    return bool(torch.isfinite(gradient).all())
