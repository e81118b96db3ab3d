"""Heatmaps under measures that no search maximised: measures them, and writes their section of docs/quality.md.

    python -m quality.unseen --images 24 --write ../docs/quality.md     from benchmarks/: measures what is missing
    python -m quality.unseen --report --write ../docs/quality.md        measures nothing: reports what is on disk

A search that maximises insertion minus deletion may fit them. It is better only if it is also better by measures that
it did not use. Only images of the second half are measured: choices were made on the first.
"""

import argparse
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import reports
import structlog
import torch
from quality import cache
from quality.goals import ENOUGH, signed
from quality.statistics import Interval, bootstrap, compare
from quality.subjects import names, subjects
from quality.unseen_measures import COSTLY, DEFAULT, MEASURES, METHODS, OURS, SEEDED, measured, place

log = structlog.get_logger()


def label(name: str, seed: int) -> str:
    """Returns the name of a measurement."""
    return f"{name}, seed {seed}" if seed else name


Records = Mapping[str, Mapping[str, cache.Record]]
"""Records by method and by image."""


def report(records: Records) -> str:
    """Returns the section of the report."""
    return "\n".join(
        [
            "## Do the searches fit the measure?",
            "",
            "The searches optimise insertion and deletion. Here are the same heatmaps by measures that no search",
            "used, on images of the second half only; all choices were made on the first. `python -m quality.unseen`",
            "in `benchmarks/` measured this section. The greedy region search adds the best of all superpixels at",
            "every step; with windows of 8 it scores only the most promising ones again. Other seeds and greedy",
            "searches are measured on few images or none. Superpixels of plain images merge: a greedy search with few",
            "evaluations, n(n+1) for n regions, had few regions to order.",
            "",
            f"A difference is judged on {ENOUGH} images: on fewer, it is provisional.",
            "",
            _areas(records),
            f"Differences of the {OURS} from others, paired by image. *Better* says whether the interval of the",
            "insertion is above zero: an advantage that holds only by the first measure is one of fitting it.",
            "",
            _differences(records),
            "Predictability: how well the heatmap alone predicts which of 200 random occlusions leave the class half",
            "of its score ([what it means](reading-an-explanation.md#predictability)).",
            "",
            _predictable(records),
        ]
    )


def _areas(records: Records) -> str:
    rows = []
    for name, found in records.items():
        for measure, title in MEASURES.items():
            if len(found) > 1:
                figures = (_mean(found, f"{measure}_{kind}") for kind in ("insertion", "deletion"))
                rows.append((name, title, len(found), *figures, round(_plain(found, "evaluations"))))
    return reports.table(("method", "measure", "images", "insertion", "deletion", "evaluations"), rows)


def _differences(records: Records) -> str:
    rows = []
    for other in records:
        mine = records[OURS] if "seed" not in other else records.get(other.replace(DEFAULT, OURS), {})
        common = [each for each in mine if each in records[other]]
        if other.startswith(OURS) or len(common) < 2:
            continue
        for measure, title in MEASURES.items():
            kinds = (f"{measure}_insertion", f"{measure}_deletion")
            insertion, deletion = (_paired(mine, records[other], common, kind) for kind in kinds)
            better = "yes" if insertion.low > 0 else "no" if insertion.high < 0 else "not shown"
            rows.append((other, title, len(common), signed(insertion), signed(deletion), better))
    return reports.table(("over", "measure", "images", "insertion", "deletion", "better"), rows)


def _predictable(records: Records) -> str:
    rows = []
    for name, found in records.items():
        known = {each: record for each, record in found.items() if not math.isnan(record["predictability_auroc"])}
        if len(known) > 1:
            figures = (_mean(known, f"predictability_{kind}") for kind in ("auroc", "balanced_accuracy"))
            rows.append((name, len(known), *figures))
    return reports.table(("heatmap", "images", "AUROC", "balanced accuracy"), rows)


def _mean(found: Mapping[str, cache.Record], what: str) -> str:
    return f"{bootstrap([each[what] for each in found.values()], seed=0):.3f}"


def _plain(found: Mapping[str, cache.Record], what: str) -> float:
    return float(sum(each[what] for each in found.values()) / len(found))


def _paired(first: Mapping[str, Any], second: Mapping[str, Any], common: list[str], what: str) -> Interval:
    one, other = ([records[each][what] for each in common] for records in (first, second))
    return compare(one, other, seed=0).difference


def main() -> None:
    """Measures what is missing, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="number of images of the second half")
    parser.add_argument("--few", type=int, default=6, help="number of these for costly methods and for another seed")
    parser.add_argument("--skip", type=int, default=0, help="measure no image before this one; for several processes")
    parser.add_argument("--report", action="store_true", help="measure nothing: report what is on disk")
    parser.add_argument("--write", type=Path, help="file in which the section is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = names(10_000) if options.report else subjects(10_000)
    half = [each for each in everything.names if each not in everything.tuning][: options.images]
    wanted = [(name, seed) for seed in (0, 1) for name in METHODS if not seed or name in SEEDED]
    if not options.report:
        pictures = {each.name: each for each in everything.chosen}
        for number, image in enumerate(half):
            for name, seed in wanted if number >= options.skip else ():
                if number < options.few or (name not in COSTLY and not seed):
                    how = partial(measured, everything.model, pictures[image], METHODS[name], seed)
                    cache.recorded(place(name, seed, everything.digest), image, how)
                    log.info("unseen.measured", method=label(name, seed), image=image)
    records = {}
    for name, seed in wanted:
        paths = {each: place(name, seed, everything.digest) / f"{each}.npz" for each in half}
        records[label(name, seed)] = {each: cache.read(path) for each, path in paths.items() if path.exists()}
    text = report(records)
    print(text)
    if options.write:
        reports.write_section(options.write, "unseen measures", text)


if __name__ == "__main__":
    main()
