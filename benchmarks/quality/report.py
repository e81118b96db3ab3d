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
"Reimplemented" is our copy of the reference implementation of I-GOS and iGOS++, including its faults. A trial of its
line search ends as soon as its failure is certain; its remaining evaluations are counted but not run. For the
comparison with the published code, both are measured as that code measures: cells of equal saliency are in the order
of a sort. This alone changes a figure by some hundredths. The figures of the published code come from one run, whose
noise was not fixed. Those of the reimplementation are the mean and the range of several seeds.

{protocol}
It is not known how the images of the published figures were resized to 224 pixels, and resizing changes the figures.
All other figures here use bilinear resampling with antialiasing. This table has the reimplementation with seed 0 on the
same images with other resampling:

{resampled}
## Heatmaps

High insertion is good. Low deletion is good, but adversarial masks reach it too. Both are measured in 50 steps at 28x28
cells with a checked blur as baseline. Finer heatmaps are averaged over cells, coarser ones upsampled. Methods have
their defaults. Seconds are those of one core of a busy machine, without metrics.

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

The paper reports two findings on ImageNet. Beam search finds a set within 20 % of the area on 80 % of the images, and
gradient heatmaps on far fewer. On 30 % there is more than one set, if sets may share one patch. The tables have the
same for this model, with the searches above. At overlap 0, sets found at overlap 1 are counted, so this figure is a
lower bound.

{findings}
## Do heatmaps change when the weights are random?

Layers get random weights, from the output down: a third of them, then two thirds, then all. The table has the rank
correlation of each heatmap with that of the trained model for the same class. Near 0 is good. Above 0.5 with all layers
random, a heatmap shows the image and not the model.

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
