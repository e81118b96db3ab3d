"""How batches of a model are cut, kept on disk so that a worker that starts again need not measure it anew.

What is found holds for one model, made faster in one way, on one kind of device with so many threads, one release of
torch and one set of settings for its kernels. All of that names the file: what was found under other circumstances is
never read.
"""

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What was measured of a model for its batches."""

    batch_size: int
    quantum: int
    """Batches come in multiples of this; see `TorchEvaluator.quantum`."""
    pads_small: bool
    """Whether smaller ones are padded to it."""
    equal_rows: bool
    """Whether a row is then the same to the last bit in every batch; see `RowEquality`."""
    equality: str
    """What was found about that."""
    forward: float
    """Images a second."""
    backward: float
    """With gradient; 0 where the model gives none."""

    @property
    def sound(self) -> bool:
        """Whether it can be one that was measured."""
        counted = all(isinstance(each, int) for each in (self.batch_size, self.quantum))
        whole = counted and 1 <= self.quantum <= self.batch_size and self.batch_size % self.quantum == 0
        return whole and self.forward > 0 and self.backward >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPlan:
    """A file with the plan of a model under certain circumstances."""

    directory: Path
    circumstances: Mapping[str, Any]
    """All that the plan depends on, as JSON has it."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        text = json.dumps(self.circumstances, sort_keys=True)
        return self.directory / f"batches-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self) -> BatchPlan | None:
        """Returns the plan; None where there is none, or none that can be used."""
        try:
            document = json.loads(self.path.read_bytes())
            plan = BatchPlan(**document["plan"])
            if document["circumstances"] == json.loads(json.dumps(self.circumstances)) and plan.sound:
                return plan
            error = "it is of another model, or holds what cannot be"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as unreadable:
            error = f"{type(unreadable).__name__}: {unreadable}"
        log.warning("batch-plan-unreadable", path=str(self.path), error=error, doing="measuring anew")
        return None

    def write(self, plan: BatchPlan) -> None:
        """Keeps a plan, whole or not at all; where it cannot, the next start measures again."""
        document = json.dumps({"circumstances": self.circumstances, "plan": asdict(plan)}, indent=1, sort_keys=True)
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._replace(document)
        except OSError as error:
            log.warning("batch-plan-not-kept", path=str(self.path), error=str(error), doing="measuring at each start")

    def _replace(self, document: str) -> None:
        """Puts a document in the file's place; where that fails, as on a full disk, nothing of it stays."""
        handle, partial = tempfile.mkstemp(dir=self.directory, suffix=".partial")
        try:
            with open(handle, "w") as file:
                file.write(document)
            os.replace(partial, self.path)
        finally:
            Path(partial).unlink(missing_ok=True)


def device_name(device: torch.device) -> str:
    """Returns what kind of device it is: the same name for the same kernels at the same speed."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        libraries = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
        return f"{found.name}, {found.total_memory} bytes, {libraries}"
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors"


KERNEL_SETTINGS = re.compile("(ATEN|BLIS|CUBLAS|CUDA|CUDNN|DNNL|GOMP|KMP|MKL|NVIDIA|OMP|ONEDNN|OPENBLAS|TORCH)_.*")
"""Environment variables by which libraries choose their kernels."""


def kernel_settings() -> Mapping[str, str]:
    """Returns what the environment says to the libraries whose kernels run the model."""
    return {name: value for name, value in os.environ.items() if KERNEL_SETTINGS.fullmatch(name)}


def _processor() -> str:
    """Returns the name of the processor and a digest of its instructions, which hypervisors hide in part."""
    try:
        text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    instructions = told.get("flags", told.get("Features", ""))
    name = told.get("model name", platform.machine())
    return f"{name} {hashlib.sha256(instructions.encode()).hexdigest()[:16]}"
