"""The report: what was measured, beside what is wanted."""

from pathlib import Path

from quality.goals import goals_table
from quality.heatmap import DEFAULT
from quality.heatmap_report import Heatmaps
from quality.measuring import Measurements
from quality.sets_report import Sets
from subject import machine

TEXT = """# How good the explanations are

`make bench-quality` wrote this file ({machine}): EfficientNet-Lite0
on up to {count} pictures in a fixed random order, of which a row says how many it rests on; the top class, seed 0,
means with 95 % bootstrap intervals over the pictures, differences paired by picture. A goal is to be judged on 40
pictures; on fewer, the verdict is what those few say, and `make bench-quality` goes on from there.

## What is wanted, and what is reached

{goals}
"Authors' protocol" is the published code of I-GOS and iGOS++ as it runs, written anew (`protocol="authors"`). Trials of
its line search whose failure is certain before all of it is evaluated are left out of the run and counted all the same.
Against the program itself both are measured as the program does it: cells of equal saliency in the order of a sort,
which by itself moves a figure by some hundredths. The program's figures are of one run, whose noise nobody fixed; the
protocol's are the mean of some seeds, with the range.

{protocol}
How the pictures behind the program's figures were brought to 224 pixels is not known, and it matters: the same protocol
with seed 0 on the same pictures, resampled otherwise than bilinear with antialiasing:

{resampled}
## Heatmaps

Insertion (high is good) and deletion (low is good, but adversarial masks reach it too) in 50 steps at 28x28 cells with
a checked blur as baseline; finer heatmaps are averaged over cells, coarser ones upsampled. Methods have their defaults.
Seconds are those of one core of a busy machine, metrics left out.

{methods}
## Quality against evaluations

{curve}
The default spends {spent} at most: a descent whose mask has settled ends.

{halves_text}

{halves}
## Minimal sufficient explanations

Both searches have 7x7 patches as bilinear tents, a black baseline and a threshold of 0.9. Evaluations are all that were
made: repeated sets, certificates and orderings included. Smallest and diverse are means over the pictures, the latter
of the largest family at overlap 1.

{sets}
{known}
## Two findings of the paper

The paper finds a set within 20 % of the area on 80 % of ImageNet by beam search, far more seldom by gradient heatmaps;
and more than one set on 30 % where they may share one patch. For this model, with the searches above (at overlap 0 the
sets found at overlap 1 are counted, so that figure is a lower bound):

{findings}
## Do heatmaps change when the weights are random?

Rank correlation with the trained model's heatmap of the same class while ever more layers, from the output down, get
random weights. Near 0 is good; above 0.5 with all of them random, a heatmap shows the picture and not the model.

{sanity}
## Pointing game

Not measured: no boxes come with these pictures.
"""

HALVES = "Defaults are chosen on one half of the pictures (chelsea and coffee in it), and reported on the other:"


def write(measurements: Measurements, path: Path | None) -> None:
    """Writes the report of what is on disk, or prints it."""
    heatmaps, sets = Heatmaps(measurements), Sets(measurements)
    text = TEXT.format(
        machine=machine(),
        count=len(measurements.subjects.names),
        goals=goals_table([*heatmaps.goals(), *sets.goals()]),
        protocol=heatmaps.protocol(),
        resampled=heatmaps.resampled(),
        methods=heatmaps.methods(),
        spent=DEFAULT,
        curve=heatmaps.curve(path.parent / "images" if path else None),
        halves_text=HALVES,
        halves=heatmaps.halves(),
        sets=sets.table(),
        known=sets.known(),
        findings=sets.findings(),
        sanity=heatmaps.sanity(),
    )
    if path is None:
        print(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
