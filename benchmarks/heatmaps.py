"""Every heatmap method on the same pictures: insertion, deletion, evaluations, seconds, and the sanity check.

    python benchmarks/heatmaps.py --limit 10 --methods igos++,rise,grad-cam --sanity 2 --write docs/heatmaps.md

Pictures are those of SAGITTAL_BENCHMARK_IMAGES, else the shipped ones. All heatmaps are brought to 28x28 cells before
they are measured, so that no method gains from the size of its cells.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from subject import Outcome, Picture, load_model, machine, pictures, report, run, table
from torch import Tensor, nn

from sagittal.engine import Engine, Task
from sagittal.explain import EXPLAINERS, EvaluateMask, Explainer, Metrics, Question, explain
from sagittal.explain.masking import upsample
from sagittal.explain.sanity import randomisation_check
from sagittal.explain.seam import Prediction, SaliencyMask
from sagittal.explain.statistics import bootstrap, compare
from sagittal.models.loading import LoadedModel
from sagittal.models.preprocessing import black
from sagittal.models.sources import load_source

CELLS = 28
"""Side of the heatmaps that are measured, in cells."""

REFERENCE = "igos++"
"""The method that others are compared with."""

NOT_HEATMAPS = frozenset({"evaluate-mask", "mse", "sag", "concepts"})

TEXT = """# Heatmap methods

{machine}; EfficientNet-Lite0, {count} pictures, top class, checked blur as baseline, defaults of each method, seed 0.
All heatmaps are measured at 28x28 cells in 50 steps. Means with 95 % bootstrap intervals over the pictures. *Over
{reference}* is the paired difference of insertion. Seconds are those of the search.

{table}"""

SANITY_TEXT = """
*Random weights* is the rank correlation of the heatmap with that of the same architecture with all weights replaced by
random ones of the same scale, for the same class, over {count} pictures: near 0 is good (0 where the heatmap goes
empty); near 1 says that a method shows the picture and not the model.
"""


def main() -> None:
    """Measures and reports."""
    options = _arguments()
    loaded = load_model()
    chosen = _spread(list(pictures(loaded)), options.limit)
    outcomes = {name: [_measured(loaded, picture, name) for picture in chosen] for name in options.methods}
    sanity = (
        {name: _sanity(loaded, chosen[: options.sanity], name) for name in options.methods} if options.sanity else {}
    )
    text = TEXT.format(machine=machine(), count=len(chosen), reference=REFERENCE, table=_table(outcomes, sanity))
    report(text + (SANITY_TEXT.format(count=len(chosen[: options.sanity])) if sanity else ""), options)


def _arguments() -> argparse.Namespace:
    every = [name for name in EXPLAINERS if name not in NOT_HEATMAPS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=every, help="names with commas between")
    parser.add_argument("--limit", type=int, default=0, help="number of pictures, spread over all; 0 for all")
    parser.add_argument(
        "--sanity", type=int, default=0, help="number of pictures for the sanity check; 0 leaves it out"
    )
    parser.add_argument("--write", type=Path, help="file to write the report to")
    return parser.parse_args()


def _spread(every: Sequence[Picture], limit: int) -> Sequence[Picture]:
    if not limit or limit >= len(every):
        return every
    return [every[index * len(every) // limit] for index in range(limit)]


def _measured(loaded: LoadedModel, picture: Picture, name: str) -> Outcome:
    """Runs a method, then measures its heatmap at the common size."""
    found = run(loaded, picture, EXPLAINERS[name].explainer(), metrics=Metrics(curves=False))
    measured = run(loaded, picture, EvaluateMask(heatmap=_resized(found.saliency)))
    return dataclasses.replace(found, insertion=measured.insertion, deletion=measured.deletion)


def _resized(saliency: Tensor | None) -> Tensor:
    assert saliency is not None
    return upsample(saliency.unsqueeze(0), (CELLS, CELLS))[0, 0].cpu()


def _table(outcomes: Mapping[str, Sequence[Outcome]], sanity: Mapping[str, float]) -> str:
    header = ["method", "insertion", "deletion", f"over {REFERENCE}", "evaluations", "seconds"]
    rows = [_row(name, found, outcomes.get(REFERENCE)) for name, found in outcomes.items()]
    if sanity:
        header.append("random weights")
        rows = [[*row, f"{sanity[row[0]]:.2f}"] for row in rows]
    return table(header, rows)


def _row(name: str, found: Sequence[Outcome], reference: Sequence[Outcome] | None) -> list[str]:
    insertion = [outcome.insertion for outcome in found]
    over = ""
    if reference is not None and name != REFERENCE:
        over = f"{compare(insertion, [outcome.insertion for outcome in reference], seed=0).difference:+.3f}"
    return [
        name,
        f"{bootstrap(insertion, seed=0):.3f}",
        f"{bootstrap([outcome.deletion for outcome in found], seed=0):.3f}",
        over,
        f"{fmean(outcome.evaluations for outcome in found):.0f}",
        f"{fmean(outcome.seconds for outcome in found):.1f}",
    ]


def _sanity(loaded: LoadedModel, chosen: Sequence[Picture], name: str) -> float:
    """Returns the mean rank correlation with the heatmap of a model whose weights are all random."""
    explainer = EXPLAINERS[name].explainer()
    correlations = []
    for picture in chosen:
        target = _top_class(loaded, picture)

        def heatmap(module: nn.Module, image: Tensor = picture.image, target: int = target) -> Tensor:
            return _heatmap(loaded, module, Question(image=image, target=target), explainer)

        (state,) = randomisation_check(lambda: _module(loaded), heatmap, layers=1)
        correlations.append(state.correlation)
    return fmean(correlations) if correlations else math.nan


def _module(loaded: LoadedModel) -> nn.Module:
    return load_source(loaded.entry.source).eval().requires_grad_(False).to(loaded.device)


def _top_class(loaded: LoadedModel, picture: Picture) -> int:
    outcome = run(loaded, picture, EvaluateMask(heatmap=torch.zeros(2, 2)), metrics=Metrics(curves=False))
    return next(event.target.index for event in outcome.events if isinstance(event, Prediction))


def _heatmap(loaded: LoadedModel, module: nn.Module, question: Question, explainer: Explainer) -> Tensor:
    """Returns the heatmap of a module as it is, none of its layers folded away."""
    evaluator = dataclasses.replace(loaded.evaluator, module=module, inspected=module, channels_last=False)
    question = dataclasses.replace(question, black=black(loaded.entry.preprocessing))
    finals: list[Tensor] = []
    ends: list[BaseException | None] = []

    def note(event: object) -> None:
        if isinstance(event, SaliencyMask) and event.final:
            finals.append(event.saliency)

    task = Task(steps=explain(question, explainer, Metrics(curves=False)), on_event=note, on_end=ends.append)
    Engine(evaluator, batch_size=loaded.found.batch_size, unit=loaded.evaluator.unit).run(task)
    if ends[0] is not None:
        raise ends[0]
    return finals[0]


if __name__ == "__main__":
    main()
