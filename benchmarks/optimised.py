"""The gain of the optimisation steps: each model as a worker runs it, against the original of its source."""

import structlog
from sides import IMAGES, ROUNDS, compare
from subject import MODELS, arguments, machine, report, table

from sagittal.core.models import read_entries

ARCHITECTURES = ("resnet50", "mobilenet_v3_large", "convnext_tiny", "vit_b_16")

log = structlog.get_logger(__name__)


def main() -> None:
    """Compares every model, and writes the report."""
    sources = {"EfficientNet-Lite0": read_entries(MODELS)[0].source}
    sources |= {name: {"kind": "torchvision", "model": name} for name in ARCHITECTURES}
    rows = []
    for name, source in sources.items():
        found = compare(source)
        ratios = [f"{found.forward:.2f}x", f"{found.backward:.2f}x"]
        rows.append([name, *ratios, f"{found.largest_difference:.1g}", ", ".join(found.kept) or "nothing"])
        log.info("model-done", model=name, found=found)
    compared = table(["model", "forward", "forward + backward", "largest difference", "kept"], rows)
    text = TEXT.format(machine=machine(), rounds=ROUNDS, images=IMAGES, compared=compared)
    report(text, arguments(__doc__ or ""), "optimised")


TEXT = """## Optimised against plain

Written by `make bench-engine` ({machine}; times are processor times). Two processes run in turn, in batches
of {images}. One runs the plain model as its source makes it. The other runs the model as a worker does, after the
optimisation steps of its load, and keeps freed memory (`sagittal.engine.cpu.memory`). Each figure is the median of
{rounds} ratios of consecutive runs. All models except EfficientNet-Lite0 have random weights. The difference is that of
a probability, on noise.

{compared}"""


if __name__ == "__main__":
    main()
