"""Measures the best batch size of a model at load, and whether small batches should be padded."""

import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from sagittal.engine.timing import Variant, computing_seconds, pass_seconds

CPU_SIZES = (16, 8, 32)
"""Batch sizes tried on a CPU, the likeliest first: larger batches exceed its caches, and smaller ones are dominated by
the fixed cost of a step."""

GPU_SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Batch sizes tried on a GPU, up to its memory. The smallest fast size is chosen, because cancellation and scheduling
wait for a batch."""

CLOSE = 0.96
"""Share of the best throughput that counts as equally fast."""

PATIENCE = 4.0
"""Time for trying batch sizes, in seconds; sizes that would take longer are not tried."""

ROUNDS = 3
"""Maximum number of trials of every size: the fastest of several is more reliable on a busy machine."""

CHEAP = 0.5
"""A single image runs unpadded if it takes less than this share of the time of a whole quantum."""

MEMORY_SHARE = 0.5
"""Share of a GPU's memory that a batch may use, beside other models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Images per second at the chosen batch size."""

    batch_size: int
    forward: float
    backward: float
    """With gradient; 0 if the model returns none."""


def find_throughput(
    variant: Variant,
    image: Tensor,
    sizes: Sequence[int],
    *,
    seconds: Callable[[Variant, Tensor], float] = pass_seconds,
    patience: float = PATIENCE,
) -> Throughput:
    """Returns the first batch size that is about as fast as any other, and its throughput.

    Args:
        variant: The model as it will run.
        image: An input (1, 3, height, width).
        sizes: Batch sizes to try, in order of preference. The first is always tried.
        seconds: Measures a pass, in seconds.
        patience: Time to spend, in seconds.
    """
    started = time.perf_counter()
    trials: dict[int, Trial] = {}
    if image.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(image.device)  # other models had larger batches
    seconds(variant, image.repeat(sizes[0], 1, 1, 1))
    for round_number in range(ROUNDS):
        for size in sizes if round_number == 0 else tuple(trials):
            needed = size * min((trial.whole for trial in trials.values()), default=0.0)
            if trials and time.perf_counter() - started + needed > patience:
                break
            try:
                trial = _try(variant, image, size, seconds)
            except torch.cuda.OutOfMemoryError:
                break
            trials[size] = trial.faster(trials.get(size))
            if round_number == 0 and _fills_memory(image.device):
                break
    if not trials:
        raise torch.cuda.OutOfMemoryError(f"the device has not enough memory for {sizes[0]} images of this size")
    least = min(trial.whole for trial in trials.values())
    size, trial = next((size, trial) for size, trial in trials.items() if trial.whole * CLOSE <= least)
    backward = 1 / max(trial.whole - trial.forward, 1e-9) if variant.gradient else 0.0
    return Throughput(batch_size=size, forward=1 / trial.forward, backward=backward)


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds per image at a batch size."""

    forward: float
    whole: float
    """Sum of a forward pass, and of a pass with gradient if there is one; sizes are compared by it."""

    def faster(self, other: "Trial | None") -> "Trial":
        """Returns the best times of both."""
        return self if other is None else Trial(min(self.forward, other.forward), min(self.whole, other.whole))


def _try(variant: Variant, image: Tensor, size: int, seconds: Callable[[Variant, Tensor], float]) -> Trial:
    inputs = image.repeat(size, 1, 1, 1)
    forward_only = replace(variant, gradient=False)
    return Trial(seconds(forward_only, inputs) / size, seconds(variant, inputs) / size)


def batch_sizes(device: torch.device) -> Sequence[int]:
    """Returns the batch sizes to try on a device, multiples of every quantum."""
    return CPU_SIZES if device.type == "cpu" else GPU_SIZES


def runs_small_cheaply(
    variant: Variant, image: Tensor, quantum: int, *, seconds: Callable[[Variant, Tensor], float] = computing_seconds
) -> bool:
    """Returns whether one image takes much less time than a whole quantum, so that padding it would be wasteful."""
    if quantum == 1:
        return False
    alone, padded = image, image.repeat(quantum, 1, 1, 1)
    times = [(seconds(variant, alone), seconds(variant, padded)) for _ in range(2)]
    return min(one for one, _ in times) < CHEAP * min(whole for _, whole in times)


def _fills_memory(device: torch.device) -> bool:
    """Returns whether twice the batch would exceed its share of a GPU's memory."""
    if device.type != "cuda":
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return 2 * torch.cuda.max_memory_allocated(device) > MEMORY_SHARE * total


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Measurements of a model that determine its batches."""

    batch_size: int
    quantum: int
    """Batches come in multiples of this; see `TorchEvaluator.quantum`."""
    pads_small: bool
    """Whether smaller batches are padded to it."""
    equal_rows: bool
    """Whether a row is then bit-identical in every batch; see `RowEquality`."""
    equality: str
    """Details of the comparison of rows."""
    forward: float
    """Images per second."""
    backward: float
    """With gradient; 0 if the model returns none."""

    @property
    def sound(self) -> bool:
        """Returns whether its values are plausible measurements."""
        counted = all(isinstance(each, int) for each in (self.batch_size, self.quantum))
        whole = counted and 1 <= self.quantum <= self.batch_size and self.batch_size % self.quantum == 0
        return whole and self.forward > 0 and self.backward >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPlan:
    """A file with the plan of a model under certain conditions.

    A plan is valid for one model, optimised in one way, on one kind of device and number of threads, with one release
    of torch and one set of kernel settings. The file name is a digest of all of these, so that a plan from other
    conditions is never read.
    """

    directory: Path
    circumstances: Mapping[str, Any]
    """Everything that the plan depends on, as JSON values."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        text = json.dumps(self.circumstances, sort_keys=True)
        return self.directory / f"batches-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self) -> BatchPlan | None:
        """Returns the plan; None if there is none, or it is unusable."""
        try:
            document = json.loads(self.path.read_bytes())
            plan = BatchPlan(**document["plan"])
            if document["circumstances"] == json.loads(json.dumps(self.circumstances)) and plan.sound:
                return plan
            error = "it belongs to another model, or has invalid values"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as unreadable:
            error = f"{type(unreadable).__name__}: {unreadable}"
        log.warning("batch-plan-unreadable", path=str(self.path), error=error, doing="measuring again")
        return None

    def write(self, plan: BatchPlan) -> None:
        """Stores a plan atomically; if that fails, the next start measures again."""
        document = json.dumps({"circumstances": self.circumstances, "plan": asdict(plan)}, indent=1, sort_keys=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._replace(document)
        except OSError as error:
            log.warning("batch-plan-not-kept", path=str(self.path), error=str(error), doing="measuring at each start")

    def _replace(self, document: str) -> None:
        """Replaces the file with a document; a failure, such as a full disk, leaves no partial file."""
        handle, partial = tempfile.mkstemp(dir=self.directory, suffix=".partial")
        try:
            with open(handle, "w") as file:
                file.write(document)
            os.replace(partial, self.path)
        finally:
            Path(partial).unlink(missing_ok=True)


def device_name(device: torch.device) -> str:
    """Returns the kind of a device: equal names have the same kernels at the same speed."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
        return f"{found.name}, {found.total_memory} bytes, {libraries}"
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors"


KERNEL_SETTINGS = re.compile("(ATEN|BLIS|CUBLAS|CUDA|CUDNN|DNNL|GOMP|KMP|MKL|NVIDIA|OMP|ONEDNN|OPENBLAS|TORCH)_.*")
"""Environment variables that select the kernels of libraries."""


def kernel_settings() -> Mapping[str, str]:
    """Returns the environment variables that affect the kernels of the model."""
    return {name: value for name, value in os.environ.items() if KERNEL_SETTINGS.fullmatch(name)}


def _processor() -> str:
    """Returns the name of the processor and a digest of its instruction set, which hypervisors partly hide."""
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    instructions = told.get("flags", told.get("Features", ""))
    name = told.get("model name", platform.machine())
    return f"{name} {hashlib.sha256(instructions.encode()).hexdigest()[:16]}"
