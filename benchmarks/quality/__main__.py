"""Quality of the explanations: `make bench-quality` measures and writes docs/quality.md.

    python -m quality --images 42 --write ../docs/quality.md     from benchmarks/: measures what is missing on disk
    python -m quality --report --write ../docs/quality.md        measures nothing: reports what is on disk
    python -m quality --quick                                    the shipped images, the cheap methods

Images are those of SAGITTAL_BENCHMARK_IMAGES or of ../shared/images, otherwise the shipped ones. A complete run takes
about five minutes of one processor core per image, half of them for the reference implementation. Measurements are kept
in .cache/quality, so that a stopped run resumes.
"""

import argparse
from pathlib import Path

import structlog
import torch
from quality.cache import recorded
from quality.measuring import Measurements
from quality.report import write
from quality.subjects import names, subjects

log = structlog.get_logger()


def main() -> None:
    """Measures what is missing, and reports."""
    options = _arguments()
    torch.set_num_threads(1)
    count = 3 if options.quick else options.images
    measurements = Measurements(names(count) if options.report else subjects(count))
    if not options.report:
        for name, picture, folder, measure in measurements.jobs(options.quick):
            if not options.only or name in options.only.split(","):
                new = not (folder / f"{picture.name}.npz").exists()
                recorded(folder, picture.name, measure)
                if new:
                    log.info("quality.measured", what=name, picture=picture.name)
    write(measurements, options.write)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=42, help="number of images, always the same first ones")
    parser.add_argument("--only", default="", help="names of measurements, comma separated; by default all")
    parser.add_argument("--report", action="store_true", help="measure nothing: report what is on disk")
    parser.add_argument("--quick", action="store_true", help="only three images and the cheap methods")
    parser.add_argument("--write", type=Path, help="file to write the report to; its images go to images/ beside it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
