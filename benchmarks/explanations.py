"""I-GOS and iGOS++ on the shipped images, beside the results of the reference implementation: `make bench`."""

from quality.published import KNOWN
from subject import arguments, load_model, machine, pictures, report, run, table

from sagittal.explain import IGOS, IGOSPlusPlus

TITLES = {"igos": "I-GOS", "igos++": "iGOS++"}

METHODS = {"igos": IGOS(), "igos++": IGOSPlusPlus()}

TEXT = """# Benchmarks

`make bench` wrote this file: {machine}.

I-GOS and iGOS++ with their defaults at 28x28 on EfficientNet-Lite0 (the whole image at 224x224), seed 0, top class,
checked blur as baseline, insertion and deletion in 50 steps of cells. *Reference* are the figures of the reference
implementation with its line search under the same protocol. Insertion: high is good. Deletion: low is good, but an
adversarial mask reaches it too. Seconds are those of this machine, including metrics. The images are inputs of the
model, without 8-bit pixels. A worker rounds composed images to 8 bits, so `make demo` prints other figures.

The defaults of both methods were chosen on these two images, and a figure varies by a few hundredths with the seed and
the number of threads. The table shows that the figures are reached, not by how much they are exceeded.

{table}
Insertion is {verdict}, with {share:.1%} of the reference's evaluations at most.
"""


def main() -> None:
    """Measures and reports."""
    options = arguments(__doc__ or "")
    loaded = load_model()
    rows, ahead, shares = [], True, []
    for picture in pictures(loaded, names=("chelsea", "coffee")):
        for name, explainer in METHODS.items():
            outcome = run(loaded, picture, explainer)
            insertion, deletion, evaluations = KNOWN[name, picture.name]
            ahead &= outcome.insertion >= insertion
            shares.append(outcome.evaluations / evaluations)
            ours = (
                f"{outcome.insertion:.3f}",
                f"{outcome.deletion:.3f}",
                outcome.evaluations,
                f"{outcome.seconds:.1f}",
            )
            theirs = (f"{insertion:.3f}", f"{deletion:.3f}", evaluations)
            rows.append((picture.name, TITLES[name], *ours, *theirs))
    ours_header = ("insertion", "deletion", "evaluations", "seconds")
    header = ("image", "method", *ours_header, "reference: insertion", "deletion", "evaluations")
    verdict = "at least that of the reference everywhere" if ahead else "not everywhere that of the reference"
    report(TEXT.format(machine=machine(), table=table(header, rows), verdict=verdict, share=max(shares)), options)


if __name__ == "__main__":
    main()
