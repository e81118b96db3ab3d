"""The report: results and goals."""

from pathlib import Path

from quality.goals import goals_table
from quality.heatmap import DEFAULT
from quality.heatmap_report import Heatmaps
from quality.measuring import Measurements
from quality.sets_report import Sets
from reports import kept_sections
from subject import machine

TEXT = """# Quality of the explanations

`make bench-quality` wrote this file ({machine}): EfficientNet-Lite0
on up to {count} images in a fixed random order. Each row states its number of images. The top class, seed 0, means
with 95 % bootstrap intervals over the images, differences paired by image. A goal must be judged on 40 images; on
fewer, the verdict is provisional, and `make bench-quality` measures the rest.

## Goals and results

{goals}
"Reimplemented" is the reference implementation of I-GOS and iGOS++, reimplemented with its faults. Trials of its line
search whose failure is certain before all of it is evaluated are not run, but counted. For the comparison with the
published code, both are measured in its way: cells of equal saliency in the order of a sort, which alone changes a
figure by some hundredths. The figures of the published code are of one run, whose noise was not fixed; those of the
reimplementation are the mean of several seeds, with the range.

{protocol}
It is not known how the images of the published figures were resized to 224 pixels, and it matters. The
reimplementation with seed 0 on the same images, with other resampling than bilinear with antialiasing:

{resampled}
## Heatmaps

Insertion (high is good) and deletion (low is good, but adversarial masks reach it too) in 50 steps at 28x28 cells with
a checked blur as baseline; finer heatmaps are averaged over cells, coarser ones upsampled. Methods have their defaults.
Seconds are those of one core of a busy machine, without metrics.

{methods}
## Quality against evaluations

{curve}
The default takes at most {spent}: a descent ends when its mask has converged.

{halves_text}

{halves}
## Minimal sufficient explanations

Both searches have 7x7 patches as bilinear tents, a black baseline and a threshold of 0.9. Evaluations include repeated
sets, certificates and orderings. Smallest and diverse are means over the images, the latter of the largest family at
overlap 1.

{sets}
{known}
## Two findings of the paper

The paper finds a set within 20 % of the area on 80 % of ImageNet by beam search, far more seldom by gradient heatmaps;
and more than one set on 30 % where they may share one patch. For this model, with the searches above (at overlap 0 the
sets found at overlap 1 are counted, so that figure is a lower bound):

{findings}
## Do heatmaps change when the weights are random?

Rank correlation with the trained model's heatmap of the same class, while increasingly many layers, from the output
down, get random weights. Near 0 is good. Above 0.5 with all layers random, a heatmap shows the image and not the model.

{sanity}
## Pointing game

Not measured: these images have no boxes.
"""

HALVES = "Defaults are chosen on one half of the images (including chelsea and coffee), and reported on the other:"


def write(measurements: Measurements, path: Path | None) -> None:
    """Writes the report of the records on disk, or prints it."""
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
    path.write_text(text + kept_sections(path))
