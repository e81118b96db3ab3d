"""Minimal sufficient explanations: our search beside the authors' on the same pictures, patches and baseline.

    python benchmarks/structured.py --limit 10 --shape tent --baseline black --write docs/structured.md

Pictures are those of SAGITTAL_BENCHMARK_IMAGES, else the shipped ones. Every evaluation counts: those of certificates,
of the causal triples and of the authors' ordering too.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subject import Picture, load_model, machine, pictures, report, table

from sagittal.engine import Engine, Task
from sagittal.explain import Black, Blur, MinimalSufficientExplanations, Question, explain
from sagittal.explain.seam import CertificateLevel, Event, SufficientSet
from sagittal.models.loading import LoadedModel
from sagittal.models.preprocessing import black

BASELINES = {"black": Black(), "blur": Blur()}

LEVELS = {
    CertificateLevel.SUFFICIENT: "s",
    CertificateLevel.ONE_MINIMAL: "1",
    CertificateLevel.SUBSET_MINIMAL: "m",
    CertificateLevel.MINIMUM_SIZE: "min",
}

TEXT = """# Minimal sufficient explanations

{machine}; EfficientNet-Lite0, {count} pictures, top class, baseline {baseline}, patches {shape}, 7x7, threshold 0.9.
Sizes are in patches, each with its certificate: s sufficient, 1 1-minimal, m subset-minimal, min minimum-size. The
authors' search claims sufficiency alone.

{table}
{summary}
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found."""

    sets: tuple[SufficientSet, ...]
    evaluations: int
    seconds: float

    @property
    def smallest(self) -> int:
        """Patches of the smallest set; more than any grid has where there is none."""
        return min((len(each.patches) for each in self.sets), default=10_000)

    @property
    def diverse(self) -> int:
        """Sets in the largest family that overlaps by at most one patch."""
        return sum(each.diverse for each in self.sets)

    def sizes(self) -> str:
        """Lists the sizes with their certificates."""
        ordered = sorted(self.sets, key=lambda each: len(each.patches))
        return " ".join(f"{len(each.patches)}{LEVELS[each.certificate.level]}" for each in ordered) or "none"


def main() -> None:
    """Measures and reports."""
    options = _arguments()
    loaded = load_model()
    chosen = list(pictures(loaded, options.names))
    chosen = chosen[:: max(1, len(chosen) // options.limit)][: options.limit]
    ours, theirs = [], []
    rows = []
    for picture in chosen:
        ours.append(search(loaded, picture, options.baseline, options.shape, "sagittal"))
        cells = [picture.name, ours[-1].evaluations, ours[-1].sizes(), ours[-1].diverse, f"{ours[-1].seconds:.1f}"]
        if options.authors:
            theirs.append(search(loaded, picture, options.baseline, options.shape, "authors"))
            cells += [theirs[-1].evaluations, theirs[-1].sizes(), theirs[-1].diverse]
        rows.append(cells)
        print(*cells, flush=True)
    header = ["picture", "evaluations", "sets", "diverse", "seconds"]
    header += ["authors' evaluations", "authors' sets", "authors' diverse"] if options.authors else []
    text = TEXT.format(
        machine=machine(),
        count=len(chosen),
        baseline=options.baseline,
        shape=options.shape,
        table=table(header, rows),
        summary=summary(ours, theirs),
    )
    report(text, options)


def search(loaded: LoadedModel, picture: Picture, baseline: str, shape: str, protocol: str) -> Found:
    """Explains a picture's top class."""
    explainer = MinimalSufficientExplanations(patch_shape=shape, protocol=protocol)
    question = Question(image=picture.image, baseline=BASELINES[baseline], black=black(loaded.entry.preprocessing))
    events: list[Event] = []
    ends: list[BaseException | None] = []
    task = Task(steps=explain(question, explainer), on_event=events.append, on_end=ends.append)
    started = time.monotonic()
    Engine(loaded.evaluator, batch_size=loaded.found.batch_size, unit=loaded.evaluator.unit).run(task)
    if ends[0] is not None:
        raise ends[0]
    sets = {event.patches: event for event in events if isinstance(event, SufficientSet)}
    return Found(tuple(sets.values()), task.usage.evaluations, time.monotonic() - started)


def summary(ours: Sequence[Found], theirs: Sequence[Found]) -> str:
    """Says what the goals ask: cost, size and number against the authors' search."""
    count = len(ours)
    lines = [
        f"Evaluations: {sum(each.evaluations for each in ours)} in total, "
        f"{sum(each.evaluations for each in ours) / count:.0f} a picture. "
        f"At least one set on {sum(bool(each.sets) for each in ours)} of {count} pictures; "
        f"within 20 % of the area on {sum(each.smallest <= 0.2 * 49 for each in ours)}; "
        f"more than one diverse set on {sum(each.diverse > 1 for each in ours)}."
    ]
    if theirs:
        pairs = list(zip(ours, theirs, strict=True))
        lines.append(
            f"Authors' search: {sum(each.evaluations for each in theirs)} in total. Our smallest set is no larger on "
            f"{sum(our.smallest <= their.smallest for our, their in pairs)} of {count} pictures, our diverse sets are "
            f"no fewer on {sum(our.diverse >= their.diverse for our, their in pairs)}."
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of pictures; all without")
    parser.add_argument("--limit", type=int, default=100, help="most pictures, evenly spread over those there are")
    parser.add_argument("--baseline", choices=sorted(BASELINES), default="blur")
    parser.add_argument("--shape", choices=("box", "tent"), default="box", help="shape of our patches")
    parser.add_argument("--authors", action=argparse.BooleanOptionalAction, default=True, help="run their search too")
    parser.add_argument("--write", type=Path, help="file to write the report to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
