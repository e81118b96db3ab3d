"""How sure are explanations? Certificates on altered images, heatmaps with and without 8-bit pixels, and over seeds.

    python benchmarks/certainty.py --images 42 --write docs/quality.md            measures what is missing on disk
    python benchmarks/certainty.py --images 42 --report --write docs/quality.md   reports what is on disk
    python benchmarks/certainty.py --only heatmap-8-bit,heatmap-tensors           measures only this part

Images are those of SAGITTAL_BENCHMARK_IMAGES in the fixed order of `make bench-quality`, otherwise the shipped ones.
Only those of the reported half are measured; choices were made on the other half. An image takes about three minutes
of one processor core. Measurements are kept in .cache/quality, so that a stopped run resumes.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import reports
import torch
from numpy.typing import NDArray
from quality import cache
from quality.statistics import bootstrap
from quality.subjects import Subjects, names, subjects
from subject import Picture, machine, table

from sagittal.engine import Task
from sagittal.engine.task import Usage
from sagittal.explain import IGOSPlusPlus, Metrics, MinimalSufficientExplanations, Question, RobustnessTest
from sagittal.explain.events import AlterationKind, Curve, CurveKind, Event, SaliencyMask, Stability, SufficientSet
from sagittal.explain.explanation import explanation_steps, observe
from sagittal.explain.measures.predictability import auroc
from sagittal.explain.measures.stability import LEAST_CORRELATION, rank_correlation
from sagittal.explain.problem import Problem, prepare
from sagittal.explain.sets.robustness import assess_robustness
from sagittal.explain.sets.sufficient_sets import FILES_BOUND, UPSAMPLING
from sagittal.explain.steps import Steps
from sagittal.models.loaded import LoadedModel
from sagittal.models.preprocessing import black, pixel_scale

SHORT = IGOSPlusPlus(iterations=13, points=1, levels=4)
"""The method of the heatmaps: iGOS++ with 174 evaluations."""

LEAST_AUROC = 0.85
"""Goal for the flags of heatmaps that another seed would change."""

RUNS, FURTHER = 4, 4
"""Runs of the measured stability beside the explanation, and runs that it should predict."""

SEARCH = MinimalSufficientExplanations()
PUBLISHED = MinimalSufficientExplanations(certify_after="rounding")
TEST = RobustnessTest(max_draws=8)
HEATMAPS = ("sagittal.engine.alterations", "sagittal.explain.measures.stability", "sagittal.explain.masks.igos")
SETS = (
    "sagittal.engine.alterations",
    "sagittal.explain.backgrounds",
    *(
        f"sagittal.explain.sets.{name}"
        for name in ("sufficient_sets", "search", "durability", "scoring", "certificates", "robustness")
    ),
)


def main() -> None:
    """Measures what is missing on disk, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=42, help="number of images in the fixed order, both halves")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="names of measurements, comma separated")
    parser.add_argument("--report", action="store_true", help="measure nothing: report what is on disk")
    parser.add_argument("--write", type=Path, help="file whose section `certainty` is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = names(options.images) if options.report else subjects(options.images)
    for picture in () if options.report else chosen.chosen:
        for name in options.only.split(",") if picture.name not in chosen.tuning else ():
            measure(chosen, picture, name)
    text = report({name: records(chosen, name) for name in MEASUREMENTS})
    print(text)
    if options.write:
        reports.write_section(options.write, "certainty", text)


def place(chosen: Subjects, name: str) -> Path:
    """Returns the folder of a measurement's records."""
    return cache.folder(f"certainty-{name}", {"model": chosen.digest}, SETS if name.startswith("sets") else HEATMAPS)


def measure(chosen: Subjects, picture: Picture, name: str) -> None:
    """Measures an image and writes the record, if there is none."""
    cache.recorded(place(chosen, name), picture.name, lambda: MEASUREMENTS[name](chosen.model, picture))


def records(chosen: Subjects, name: str) -> dict[str, cache.Record]:
    """Returns the records on disk by image."""
    paths = {picture: place(chosen, name) / f"{picture}.npz" for picture in chosen.names}
    return {picture: cache.read(path) for picture, path in paths.items() if path.exists()}


def certificates(
    loaded: LoadedModel, picture: Picture, search: MinimalSufficientExplanations, *, rounded: bool = True
) -> Mapping[str, Any]:
    """Searches on images with 8-bit pixels or on tensors, and tests the certificates on 8-bit images in both cases."""
    question = _question(loaded, picture, rounded=rounded)
    events, usage = run(loaded, _search_and_test(loaded, question, search))
    sets = {event.patches: event for event in events if isinstance(event, SufficientSet)}.values()
    robust = [each.certificate.robust for each in sets if each.certificate.robust is not None]
    alterations = {kind: [_of_kind(each, kind) for each in robust] for kind in AlterationKind}
    return {
        "sizes": np.array([len(each.patches) for each in sets], np.int64),
        "diverse": sum(each.diverse for each in sets),
        "evaluations": usage.evaluations,
        "search": usage.evaluations - usage.metric_evaluations,
        **{
            f"{kind.value}-{name}": np.array([getattr(each, name) for each in tests], np.bool_)
            for kind, tests in alterations.items()
            for name in ("sufficient", "minimal")
        },
        "sufficient": np.array([each.sufficient.at_least for each in robust]),
        "minimal": np.array([each.minimal.at_least for each in robust]),
        "sufficient-share": np.array([each.sufficient.held / each.sufficient.draws for each in robust]),
        "minimal-share": np.array([each.minimal.held / each.minimal.draws for each in robust]),
        "draws": np.array([each.minimal.draws for each in robust], np.int64),
    }


def _of_kind(robust: Any, kind: AlterationKind) -> Any:
    return next(each for each in robust.alterations if each.alteration is kind)


def _search_and_test(loaded: LoadedModel, question: Question, search: MinimalSufficientExplanations) -> Steps[None]:
    problem: Problem = yield from prepare(question)
    found: dict[tuple[int, ...], SufficientSet] = {}

    def note(event: Any) -> None:
        if isinstance(event, SufficientSet):
            found[event.patches] = event

    yield from observe(search.explain(problem), note)
    yield from assess_robustness(
        replace(problem, pixels=pixel_scale(loaded.entry.preprocessing)),
        list(found.values()),
        TEST,
        rule=search.rule(problem),
        upsampling=UPSAMPLING[search.patch_shape],
        state={},
    )


def heatmap(loaded: LoadedModel, picture: Picture, *, rounded: bool) -> Mapping[str, Any]:
    """Explains with a short iGOS++ on images with 8-bit pixels or on tensors."""
    question = _question(loaded, picture, rounded=rounded)
    events, _ = run(loaded, explanation_steps(question, SHORT, Metrics()))
    areas = {event.kind: event.auc for event in events if isinstance(event, Curve)}
    return {kind.value: areas[kind] for kind in CurveKind}


def over_seeds(loaded: LoadedModel, picture: Picture) -> Mapping[str, Any]:
    """Measures the stability of a short iGOS++, and further runs that its intervals should contain."""
    metrics = Metrics(stability=RUNS)
    events, _ = run(loaded, explanation_steps(_question(loaded, picture), SHORT, metrics))
    stability = next(each for each in events if isinstance(each, Stability))
    own = next(each.saliency for each in events if isinstance(each, SaliencyMask) and each.final)
    others, areas = [], []
    for seed in range(1, FURTHER + 1):
        events, _ = run(loaded, explanation_steps(_question(loaded, picture, seed=1000 + seed), SHORT, Metrics()))
        further = next(each.saliency for each in events if isinstance(each, SaliencyMask) and each.final)
        others.append(rank_correlation(own, further))
        found = {each.kind: each.auc for each in events if isinstance(each, Curve)}
        areas.append([found[kind] for kind in CurveKind])
    intervals = [stability.insertion, stability.deletion]
    return {
        "correlation": stability.rank_correlation,
        "intervals": np.array([[each.low, each.high] for each in intervals if each is not None]),
        "further-correlations": np.array(others),
        "further-areas": np.array(areas),
    }


def _question(loaded: LoadedModel, picture: Picture, *, rounded: bool = True, seed: int = 0) -> Question:
    preprocessing = loaded.entry.preprocessing
    return Question(
        image=picture.image,
        black=black(preprocessing),
        pixels=pixel_scale(preprocessing) if rounded else None,
        seed=seed,
    )


def run(loaded: LoadedModel, steps: Steps[None]) -> tuple[list[Event], Usage]:
    """Returns the events of a task, and its evaluations."""
    events: list[Event] = []
    ends: list[BaseException | None] = []
    task = Task(steps=steps, on_event=events.append, on_end=ends.append)
    loaded.engine().run(task)
    if ends[0] is not None:
        raise ends[0]
    return events, task.usage


MEASUREMENTS: Mapping[str, Callable[[LoadedModel, Picture], Mapping[str, Any]]] = {
    "sets-jpeg": lambda loaded, picture: certificates(loaded, picture, SEARCH),
    "sets-8-bit": lambda loaded, picture: certificates(loaded, picture, PUBLISHED),
    "sets-tensors": lambda loaded, picture: certificates(loaded, picture, PUBLISHED, rounded=False),
    "heatmap-8-bit": lambda loaded, picture: heatmap(loaded, picture, rounded=True),
    "heatmap-tensors": lambda loaded, picture: heatmap(loaded, picture, rounded=False),
    "seeds": over_seeds,
}

TEXT = """## Certainty

`python benchmarks/certainty.py --write docs/quality.md` wrote this section ({machine}): EfficientNet-Lite0 on images of
the reported half; each row states their number. Goals must be judged on 40 images; on fewer, the verdict is
provisional. The search has 7x7 patches as boxes and a checked blur as baseline. A certificate holds if the set is
still sufficient and no set with one patch less is. Backgrounds are drawn as for `Metrics.robustness`, without given
images: up to {draws} for each set. The sections above are measured on tensors, without 8-bit pixels.

{sets}
{goals}
Minimal sets lie at the threshold by construction: their score is just above it, and that of a set with one patch less
is just below it. JPEG, a shift and other backgrounds move scores by more than this distance. By default, the search
therefore replaces each minimal set by a set near it whose certificate also holds after JPEG 95, if it finds one within
about {bound:.0f} evaluations; `certificate.robust` states for each set what holds. Nothing makes it hold after a shift
or on other backgrounds.
{paired}
Does rounding harm heatmaps? iGOS++ with 174 evaluations, on the same images with and without 8-bit pixels:

{heatmaps}
Do the intervals of `Metrics.stability` contain further runs? iGOS++ with 174 evaluations: the explanation and {runs}
other seeds give the intervals, which should contain 90 % of {further} further seeds.

{seeds}
"""


def report(found: Mapping[str, Mapping[str, cache.Record]]) -> str:
    """Returns the section."""
    titles = {
        "sets-jpeg": '`certify_after="jpeg-95"`, the default',
        "sets-8-bit": '`certify_after="rounding"`',
        "sets-tensors": "tensors without 8-bit pixels; up to 40 backgrounds",
    }
    rows = [_sets_row(title, list(found[name].values())) for name, title in titles.items() if found[name]]
    header = ["search on", "images", "sets", "mean size", "hold after rounding", "after JPEG 95", "after a shift"]
    header += ["sufficient after JPEG 95", "share of backgrounds: sufficient", "minimal", "evaluations"]
    return TEXT.format(
        machine=machine(),
        draws=TEST.max_draws,
        bound=FILES_BOUND * SEARCH.grid**2,
        paired=_paired(found["sets-jpeg"], found["sets-8-bit"]),
        sets=table(header, rows),
        goals=_goals(list(found["sets-jpeg"].values())),
        heatmaps=_heatmaps(found["heatmap-8-bit"], found["heatmap-tensors"]),
        runs=RUNS,
        further=FURTHER,
        seeds=_seeds(list(found["seeds"].values())),
    )


def _sets_row(title: str, found: Sequence[cache.Record]) -> list[object]:
    count = sum(len(each["sizes"]) for each in found)

    def share(name: str) -> str:
        return f"{sum(int(each[name].sum()) for each in found)} of {count}"

    def mean(name: str) -> float:
        return float(np.concatenate([each[name] for each in found]).mean())

    return [
        title,
        len(found),
        count,
        f"{mean('sizes'):.1f}",
        *(share(f"{kind.value}-minimal") for kind in AlterationKind),
        share("jpeg-sufficient"),
        f"{mean('sufficient-share'):.0%}",
        f"{mean('minimal-share'):.0%}",
        f"{np.mean([each['evaluations'] for each in found]):,.0f}",
    ]


def _paired(ours: Mapping[str, cache.Record], published: Mapping[str, cache.Record]) -> str:
    """Returns the price of the default on the images on which both were measured."""
    both = [name for name in ours if all("diverse" in found.get(name, ()) for found in (ours, published))]
    if not both:
        return ""
    rows = []
    for title, found in (("`jpeg-95`", ours), ("`rounding`", published)):
        sizes = np.concatenate([found[name]["sizes"] for name in both])
        smallest = fmean(int(found[name]["sizes"].min()) for name in both if len(found[name]["sizes"]))
        evaluations = fmean(int(found[name]["search"]) for name in both)
        diverse = sum(int(found[name]["diverse"]) for name in both)
        held = sum(int(found[name]["jpeg-minimal"].sum()) for name in both)
        figures = f"{sizes.mean():.1f}", f"{smallest:.1f}", f"{evaluations:,.0f}"
        rows.append([title, len(both), len(sizes), diverse, held, *figures])
    header = ["`certify_after`", "images", "sets", "of them diverse", "hold after JPEG 95"]
    header += ["mean size", "smallest set, mean", "evaluations of the search"]
    return f"\nBoth on the same images, with the price:\n\n{table(header, rows)}"


def _goals(found: Sequence[cache.Record]) -> str:
    if not found:
        return "The goals are not measured yet.\n"
    rows = []
    for title, kind, least in (
        ("all certificates hold after rounding", AlterationKind.ROUNDING, 1.0),
        ("95 % hold after JPEG 95", AlterationKind.JPEG, 0.95),
    ):
        held = np.concatenate([each[f"{kind.value}-minimal"] for each in found])
        rows.append([title, f"{held.sum()} of {len(held)}", len(found), "yes" if held.mean() >= least else "**no**"])
    return str(table(["goal", "measured", "images", "met"], rows))


def _heatmaps(rounded: Mapping[str, cache.Record], tensors: Mapping[str, cache.Record]) -> str:
    both = [name for name in rounded if name in tensors]
    rows = []
    for kind in CurveKind if both else ():
        ours, theirs = (np.array([each[name][kind.value] for name in both]) for each in (rounded, tensors))
        means = (f"{bootstrap(values, seed=0):.3f}" for values in (ours, theirs))
        rows.append([kind.value, len(both), *means, f"{bootstrap(ours - theirs, seed=0):+.3f}"])
    return str(table(["area", "images", "8-bit pixels", "tensors", "difference"], rows))


def _seeds(found: Sequence[cache.Record]) -> str:
    if not found:
        return "Not measured yet: it takes about a minute of one core for each image.\n"
    low, high = (np.stack([each["intervals"][:, end] for each in found])[:, None] for end in (0, 1))
    areas = np.stack([each["further-areas"] for each in found])
    inside = (low <= areas) & (areas <= high)
    unlike = np.concatenate([each["further-correlations"] for each in found]) < LEAST_CORRELATION
    rows = [
        [f"{kind.value}: further runs inside the interval", f"{inside[..., place].sum()} of {inside[..., place].size}"]
        for place, kind in enumerate(CurveKind)
    ]
    correlations = [float(each["correlation"]) for each in found]
    rows.append(
        ["rank correlation with other seeds: lowest, mean", f"{min(correlations):.2f}, {fmean(correlations):.2f}"]
    )
    rows.append([f"further runs with a rank correlation below {LEAST_CORRELATION}", f"{unlike.sum()} of {unlike.size}"])
    rows.append([f"AUROC of the stated correlation for this (goal: {LEAST_AUROC})", _auroc(correlations, unlike)])
    return str(table(["figure", f"on {len(found)} image{'s' if len(found) > 1 else ''}"], rows))


def _auroc(correlations: Sequence[float], unlike: NDArray[np.bool_]) -> str:
    """Returns how well a low stated correlation predicts that a further run is unlike the heatmap."""
    if unlike.all() or not unlike.any():
        return "not defined: all further runs are alike in this"
    return f"{auroc(-np.repeat(correlations, FURTHER), unlike):.2f}"


if __name__ == "__main__":
    main()
