"""The same explanations by other libraries: each side in a separate process, alternately.

`make bench-peers` installs grad-cam in a separate directory, which only the other side sees. The other side runs the
original model of its source, as a user of those libraries would; our side runs it as a worker does.
"""

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
import torch.nn.functional as F
from bare import Clock, clock_of
from reports import table, write_section
from side_processes import ask, read, send
from subject import MODELS, load_model, machine, pictures
from torch import Tensor, nn

from sagittal.core.models import read_entries
from sagittal.engine import Task
from sagittal.explain import EXPLAINERS, Black, MeanColour, Metrics, Question, explanation_steps
from sagittal.explain.attribution.rise import random_masks
from sagittal.explain.events import SaliencyMask
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black
from sagittal.models.sources import load_source

LAYER = "_bn1"
"""Layer of EfficientNet-Lite0 that Grad-CAM and Score-CAM read: 1,280 channels of 7x7."""

MASKS = 400
"""Masks of RISE."""

BATCH = 16
"""Batch size of the other side."""

ROUNDS = 2
"""Runs of each side, alternating; the fastest counts."""

#: Name of each comparison: our method, its parameters, the side of the compared heatmap, the other library.
OURS: Mapping[str, tuple[str, Mapping[str, Any], int, str]] = {
    "Integrated Gradients, 50 steps": ("integrated-gradients", {"steps": 50}, 28, "captum"),
    "Occlusion, 144 windows": ("occlusion", {"window": 3, "grid": 14}, 14, "captum"),
    "Grad-CAM": ("grad-cam", {"layer": LAYER}, 7, "grad-cam"),
    "Score-CAM, 1,280 channels": ("score-cam", {"layer": LAYER, "channels": 1280}, 7, "grad-cam"),
    f"RISE, {MASKS} masks": ("rise", {"masks": MASKS}, 28, "the paper's procedure"),
}

OTHERWISE = ("Score-CAM", "RISE")
"""Comparisons whose heatmaps differ by design, so that only the time is compared."""

log = structlog.get_logger(__name__)


def ours(loaded: LoadedModel, image: Tensor, name: str) -> Tensor:
    """Returns our heatmap."""
    method, parameters, _, _ = OURS[name]
    baseline = MeanColour() if method == "score-cam" else Black()
    question = Question(image=image, baseline=baseline, black=black(loaded.entry.preprocessing))
    found: list[Tensor] = []

    def note(event: object) -> None:
        if isinstance(event, SaliencyMask) and event.final:
            found.append(event.saliency)

    steps = explanation_steps(question, EXPLAINERS[method].explainer(**parameters), Metrics(curves=False))
    loaded.engine().run(Task(steps=steps, on_event=note))
    return found[-1]


class Probabilities(nn.Module):
    """A model followed by its softmax: the output that attributions explain."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns probabilities of shape (n, classes)."""
        outputs: Tensor = self.module(inputs)
        return outputs.softmax(-1)


def theirs(module: nn.Module, image: Tensor, hidden: Tensor, name: str) -> Tensor:
    """Returns the other library's heatmap, at the size of the image or of the layer."""
    target = int(module(image.unsqueeze(0)).argmax())
    return _THEIRS[OURS[name][0]](module, image, hidden, target)


def _integrated_gradients(module: nn.Module, image: Tensor, hidden: Tensor, target: int) -> Tensor:
    from captum.attr import IntegratedGradients  # noqa: PLC0415 - only the other side needs it

    found: Tensor = IntegratedGradients(Probabilities(module)).attribute(
        image.unsqueeze(0),
        baselines=hidden.unsqueeze(0),
        target=target,
        n_steps=50,
        method="riemann_middle",
        internal_batch_size=BATCH,
    )
    return found[0].sum(0)


def _occlusion(module: nn.Module, image: Tensor, hidden: Tensor, target: int) -> Tensor:
    from captum.attr import Occlusion  # noqa: PLC0415 - only the other side needs it

    with torch.no_grad():
        found: Tensor = Occlusion(Probabilities(module)).attribute(
            image.unsqueeze(0),
            sliding_window_shapes=(3, 48, 48),
            strides=(3, 16, 16),
            baselines=hidden.unsqueeze(0),
            target=target,
            perturbations_per_eval=BATCH,
        )
    return found[0].mean(0)


def _cam(kind: str) -> Callable[[nn.Module, Tensor, Tensor, int], Tensor]:
    def run(module: nn.Module, image: Tensor, _hidden: Tensor, target: int) -> Tensor:
        import pytorch_grad_cam  # type: ignore[import-not-found]  # noqa: PLC0415 - it is nowhere else
        from pytorch_grad_cam.utils.model_targets import (  # type: ignore[import-not-found]  # noqa: PLC0415
            ClassifierOutputTarget,
        )

        method = getattr(pytorch_grad_cam, kind)(model=module, target_layers=[module.get_submodule(LAYER)])
        method.batch_size = BATCH
        targets = [ClassifierOutputTarget(target)]
        resized = method(input_tensor=image.unsqueeze(0), targets=targets)[0]
        return _before_resizing(method, image, targets) if kind == "GradCAM" else torch.from_numpy(resized)

    return run


def _before_resizing(method: Any, image: Tensor, targets: Sequence[Any]) -> Tensor:
    """Returns the other library's map at the layer's own resolution, from the data of its passes."""
    kept = method.activations_and_grads
    activations, gradients = (each[-1].cpu().data.numpy() for each in (kept.activations, kept.gradients))
    layer = method.target_layers[-1]
    found = method.get_cam_image(image.unsqueeze(0), layer, targets, activations, gradients, eigen_smooth=False)
    return torch.from_numpy(found[0])


def _rise(module: nn.Module, image: Tensor, hidden: Tensor, target: int) -> Tensor:
    """The procedure of the paper, with the same masks: their mean, weighted by the scores."""
    generator, total = torch.Generator().manual_seed(0), torch.zeros(image.shape[1:])
    with torch.no_grad():
        for start in range(0, MASKS, BATCH):
            masks = random_masks(min(BATCH, MASKS - start), 7, 0.5, (image.shape[1], image.shape[2]), generator)
            shown = hidden + masks.unsqueeze(1) * (image - hidden)
            scores = module(shown).softmax(-1)[:, target]
            total += torch.einsum("n,nhw->hw", scores, masks)
    return total / MASKS


_THEIRS: Mapping[str, Callable[[nn.Module, Tensor, Tensor, int], Tensor]] = {
    "integrated-gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "grad-cam": _cam("GradCAM"),
    "score-cam": _cam("ScoreCAM"),
    "rise": _rise,
}


def serve(side: str) -> None:
    """One side: times the requested explanations, and returns their heatmaps."""
    torch.set_num_threads(1)
    run = _our_side() if side == "ours" else _their_side()
    print(json.dumps({"ready": side}), flush=True)
    for line in sys.stdin:
        name = line.rstrip("\n")
        started = run.clock()
        heatmap = run.explain(name)
        seconds = run.clock() - started
        values = F.adaptive_avg_pool2d(heatmap[None, None].float().cpu(), OURS[name][2])[0, 0]
        print(json.dumps({"seconds": seconds, "heatmap": values.tolist()}), flush=True)


class _Run:
    def __init__(self, explain_by: Callable[[str], Tensor], clock: Clock) -> None:
        self.explain, self.clock = explain_by, clock


def _our_side() -> _Run:
    loaded = load_model()
    image = next(pictures(loaded, ("chelsea",))).image
    return _Run(lambda name: ours(loaded, image, name), clock_of(loaded.device))


def _their_side() -> _Run:
    entry = read_entries(MODELS)[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = load_source(entry.source).module.eval().to(device)
    image = torch.from_numpy(np.load(io.BytesIO(bytes.fromhex(sys.stdin.readline().strip())))).to(device)
    hidden = black(entry.preprocessing).to(device).expand_as(image).contiguous()
    return _Run(lambda name: theirs(module, image, hidden, name), clock_of(device))


def compare(peers: Path) -> list[list[object]]:
    """Returns a row for each method: the other library, the similarity of the heatmaps, and the speed-up."""
    sides = {"theirs": _start("theirs", peers), "ours": _start("ours", peers)}
    send(sides["theirs"], _picture())
    for side in sides.values():
        read(side)
    rows = []
    for name, (_, _, _, other) in OURS.items():
        answers: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for which, side in sides.items():
                answers[which].append(ask(side, name))
        seconds = {which: min(answer["seconds"] for answer in each) for which, each in answers.items()}
        likeness = _likeness(answers["ours"][-1]["heatmap"], answers["theirs"][-1]["heatmap"])
        said = ["", ""] if name.startswith(OTHERWISE) else [f"{likeness[0]:.3f}", f"{likeness[1]:.1g}"]
        rows.append([name, other, *said, f"{seconds['theirs'] / seconds['ours']:.2f}x"])
        log.info("compared", method=name, row=rows[-1], seconds=seconds)
    for side in sides.values():
        side.communicate("")
    return rows


def _picture() -> str:
    """Returns the image as the model's input, as a line of text."""
    device = torch.device("cpu")
    loaded = argparse.Namespace(entry=read_entries(MODELS)[0], device=device)
    written = io.BytesIO()
    np.save(written, next(pictures(loaded, ("chelsea",))).image.numpy())  # type: ignore[arg-type]
    return written.getvalue().hex()


def _likeness(one: list[list[float]], other: list[list[float]]) -> tuple[float, float]:
    """Returns the correlation of two heatmaps' positive parts, and their largest difference, with peaks scaled to 1."""
    first, second = (np.clip(np.asarray(each), 0, None).ravel() for each in (one, other))
    first, second = (each / max(each.max(), 1e-12) for each in (first, second))
    return float(np.corrcoef(first, second)[0, 1]), float(np.abs(first - second).max())


def _start(side: str, peers: Path) -> subprocess.Popen[str]:
    program = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; "
    program += f"sys.path.append({str(peers)!r}); import peers; peers.serve({side!r})"
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write(options: argparse.Namespace) -> None:
    """Compares, and writes the section of the report."""
    text = f"""## Beside other libraries

Written by `make bench-peers` on {machine()}. Both sides have the same image (chelsea), model (EfficientNet-Lite0)
and parameters. Each runs alone in a process with one thread, in turn, and the faster of {ROUNDS} runs counts. The other
side runs the model as its source makes it, in batches of {BATCH}. "Alike" is the correlation of the heatmaps where
they are positive. "Apart" is their largest difference after each is scaled to a peak of 1. Heatmaps of Grad-CAM
are compared at the layer, before the other side resizes its own to the image. Each side's time includes a prediction
for the class. Score-CAM of the other side weights channels by the softmax of logits, ours by what they add to the
score. RISE of the paper is a mean, ours a covariance. These heatmaps differ by design, so only the time is compared.

{table(["method", "beside", "alike", "apart", "times as fast"], compare(options.peers))}"""
    print(text)
    if options.write:
        write_section(options.write, "peers", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True, help="directory with grad-cam and what it needs")
    parser.add_argument("--write", type=Path, help="document to write the section to")
    write(parser.parse_args())
