"""Loads a model in stages: from its entry to a model that the engine can run, with its properties."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

import torch
from torch import Tensor, nn

from sagittal.core.models import ModelEntry
from sagittal.engine.evaluator import PROBABILITIES, BlackBox, Output, TorchEvaluator
from sagittal.engine.optimise import Step
from sagittal.engine.timing import Variant
from sagittal.models.checking import Check, check_layers, check_model, check_weights, labels_of, model_digest
from sagittal.models.evaluators import (
    adapt,
    choose_place,
    is_compiled,
    make_evaluator,
    resolve_preset,
    suit_batches,
    variant_of,
)
from sagittal.models.loaded import Found, LoadedModel
from sagittal.models.measuring import BatchPlan, KeptPlan, device_name, kernel_settings
from sagittal.models.probing import SeenLayers, batch_bytes, input_limits, refusals, see_layers, sides_taken, view_of
from sagittal.models.row_equality import RowEquality
from sagittal.models.sources import EVERYTHING, Access, ModelUnavailable, load_source

PROBE_IMAGES = 4
"""Number of images of noise for the checks of optimisations."""


@dataclass(slots=True, eq=False)
class Loading:
    """A model while it loads. Each stage sets what later stages need."""

    entry: ModelEntry
    device: torch.device
    batch_size: int
    """Maximum number of masked images in a batch; 0 measures the best."""
    access: Access
    started: float = field(default_factory=time.monotonic)
    notes: tuple[Step, ...] = ()
    """Steps that its source took."""
    module: nn.Module = field(init=False)
    probe: Tensor = field(init=False)
    """Images of noise."""
    digest: str = field(init=False)
    weights_digest: str = field(init=False)
    classes: int = field(init=False)
    labels: Sequence[str] = field(init=False)
    checks: Sequence[Check] = field(init=False)
    gradients: bool = field(init=False)
    evaluator: TorchEvaluator = field(init=False)
    steps: Sequence[Step] = field(init=False)
    """Steps that optimised it."""
    seen: SeenLayers = field(init=False)
    refused: Mapping[str, str] = field(init=False)
    input_limits: tuple[int, int] = field(init=False)
    plan: BatchPlan = field(init=False)

    def read(self) -> None:
        """Reads the model from its source."""
        sourced = load_source(self.entry.source, self.access)
        self.module, self.notes = sourced.module.eval().requires_grad_(False), sourced.notes
        self.weights_digest, self.digest = check_weights(self.module, self.entry), model_digest(self.module, self.entry)

    def place(self) -> None:
        """Moves the model to the device."""
        if isinstance(self.module, BlackBox):
            self.batch_size = self.batch_size or self.module.batch_size
        self.module = adapt(self.module, self.entry.preprocessing).to(self.device)
        self.probe = _probe(self.entry, self.device)

    def check(self) -> None:
        """Checks that the model is the registered classifier."""
        self.classes = _classes(self.module, self.probe)
        self.labels = labels_of(self.entry, self.classes, self.access)
        self.checks = _checked(self.module, self.entry, self.probe)
        self.gradients = _gradients_flow(self.module, self.probe)

    def optimise(self) -> None:
        """Optimises the model."""
        self.evaluator, self.steps = make_evaluator(
            self.module, self.entry, self.probe, classes=self.classes, gradients=self.gradients
        )

    def look(self) -> None:
        """Finds the methods that the model admits."""
        self.seen = see_layers(self.module, self.probe)
        check_layers(self.entry.layers, self.seen)
        self.refused = _refused(self.module, self.entry, self.probe, self.seen) if self.gradients else {}
        self.input_limits = _limits(self.module, self.probe, self.classes, self.seen)

    def measure(self) -> None:
        """Finds the best batch size."""
        kept = _kept_plan(self)
        compiled = is_compiled(self.steps)
        self.plan = suit_batches(self.evaluator, self.probe, compiled=compiled, batch_size=self.batch_size, kept=kept)

    def loaded(self) -> LoadedModel:
        """Returns the model after all stages."""
        activation_bytes = batch_bytes(variant_of(self.evaluator), self.probe) * self.plan.batch_size
        equality = RowEquality(equal=self.plan.equal_rows, quantum=self.plan.quantum, detail=self.plan.equality)
        found = Found(
            classes=self.classes,
            supports_gradients=self.gradients,
            spatial_layers=self.seen.spatial,
            feature_layers=self.seen.flat,
            steps=(*self.notes, *self.steps, equality.step),
            batch_size=self.plan.batch_size,
            evaluations_per_second=self.plan.forward,
            gradient_evaluations_per_second=self.plan.backward,
            refused=self.refused,
            patch_grid=self.seen.patch_grid,
            input_limits=self.input_limits,
            checks=tuple(self.checks),
            weights_digest=self.weights_digest,
        )
        return LoadedModel(
            entry=self.entry,
            digest=self.digest,
            labels=self.labels,
            evaluator=self.evaluator,
            found=found,
            activation_bytes=activation_bytes,
            load_seconds=time.monotonic() - self.started,
        )


OPENING = (Loading.read, Loading.place, Loading.check)
"""Stages in which files are read and the model's own code first runs, in order."""

STAGES = (*OPENING, Loading.optimise, Loading.look, Loading.measure)
"""All stages, in order."""


def load(entry: ModelEntry, device: torch.device, *, batch_size: int = 0, access: Access = EVERYTHING) -> LoadedModel:
    """Loads and optimises a model, and finds its properties.

    Args:
        entry: Registration of the model.
        device: Device to run it on.
        batch_size: Maximum number of masked images in a batch; 0 measures the best.
        access: Sources that it may be loaded from.

    Raises:
        ModelUnavailable: it cannot be loaded, or does not classify images of its preprocessing's size.
    """
    return _run(STAGES, entry, device, batch_size, access).loaded()


def rehearse(
    entry: ModelEntry,
    device: torch.device,
    *,
    batch_size: int = 0,
    access: Access = EVERYTHING,
    thorough: bool = False,
) -> None:
    """Runs the first stages of `load`, to find out whether the process survives them. Raises ModelUnavailable.

    Args:
        entry: Registration of the model.
        device: Device to run it on.
        batch_size: Maximum number of masked images in a batch; 0 measures the best.
        access: Sources that it may be loaded from.
        thorough: Whether to run all stages; otherwise the slow ones that run only our own code are omitted.
    """
    _run(STAGES if thorough else OPENING, entry, device, batch_size, access)


def _run(
    stages: Sequence[Callable[[Loading], None]],
    entry: ModelEntry,
    device: torch.device,
    batch_size: int,
    access: Access,
) -> Loading:
    entry = entry.model_copy(update={"preprocessing": resolve_preset(entry.preprocessing)})
    loading = Loading(entry, choose_place(entry, device), batch_size, access)
    for stage in stages:
        stage(loading)
    return loading


def _kept_plan(loading: Loading) -> KeptPlan | None:
    """Returns the file that keeps the model's batch plan; None if there is no directory for it."""
    if loading.access.cache is None:
        return None
    circumstances = {
        "model": loading.digest,
        "steps": [step.name for step in loading.steps if step.applied],
        "gradients": loading.evaluator.supports_gradients,
        "autocast": str(loading.evaluator.autocast),
        "side": int(loading.probe.shape[-1]),
        "batch_size": loading.batch_size,
        "device": device_name(loading.probe.device),
        "threads": torch.get_num_threads(),
        "kernels": kernel_settings(),
        "torch": torch.__version__,
        "sagittal": metadata.version("sagittal"),
    }
    return KeptPlan(directory=loading.access.cache, circumstances=circumstances)


def _refused(module: nn.Module, entry: ModelEntry, probe: Tensor, seen: SeenLayers) -> Mapping[str, str]:
    if not seen.spatial:
        return {}
    view = view_of(module, PROBABILITIES[Output(entry.output)], probe)
    return refusals(view, entry.layers.spatial)


def _checked(module: nn.Module, entry: ModelEntry, probe: Tensor) -> Sequence[Check]:
    """Returns the self-check. Raises ModelUnavailable if a required check fails."""
    checks = check_model(module, entry, probe)
    for check in checks:
        if check.required and not check.passed:
            raise ModelUnavailable(f"the self-check {check.name} failed: {check.detail}")
    return checks


def _limits(module: nn.Module, probe: Tensor, classes: int, seen: SeenLayers) -> tuple[int, int]:
    """Returns the smallest and the largest side of inputs; other sides are not tried on a model without hooks."""
    if seen.spatial or seen.flat:
        return input_limits(module, probe, classes)
    own = int(probe.shape[-1])
    return own, own


def choose_device(wish: str = "") -> torch.device:
    """Returns the requested device, or the best one. Raises ModelUnavailable if it does not exist."""
    if not wish:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelUnavailable(f"the device {wish!r} does not exist: {str(error).splitlines()[0]}") from error
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
        remedy = f"; it accepts inputs of {taken} pixels: set preprocessing.input_size to one" if taken else ""
        raise ModelUnavailable(f"the model fails on an input of {side}x{side} pixels: {error}{remedy}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ModelUnavailable(f"the model returns {type(outputs).__name__}; expected a tensor (images, classes)")
    return int(outputs.shape[1])


def _gradients_flow(module: nn.Module, probe: Tensor) -> bool:
    """Returns whether the score has a finite gradient with respect to the input."""
    try:
        _, gradient = Variant(module).backward(probe[:1])
    except RuntimeError:
        return False
    return bool(torch.isfinite(gradient).all())
