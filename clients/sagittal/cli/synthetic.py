"""`sagittal demo-data`: drawn images whose right explanation is known."""

from pathlib import Path

import click

from sagittal.cli.failures import USAGE, Failure, echo
from sagittal.synthetic import CLASSES, MARKS, Mark, sample_images, write_samples


@click.command("demo-data")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), metavar="OUT")
@click.option("--images", "count", type=click.IntRange(1, 1_000_000), default=100, show_default=True)
@click.option("--size", type=click.IntRange(32, 1024), default=224, show_default=True, help="Side in pixels.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option("--mark", "kind", type=click.Choice(list(MARKS)), help="Plants a spurious cue of this kind.")
@click.option(
    "--marked",
    multiple=True,
    metavar="CLASS=SHARE",
    help=f"Share of the images of a class that have the mark; repeatable. Classes: {', '.join(CLASSES)}.",
)
@click.option("--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Opacity of the mark.")
def demo_data(
    directory: Path, *, count: int, size: int, seed: int, kind: str | None, marked: tuple[str, ...], strength: float
) -> None:
    """Writes drawn birds to OUT: images, masks of their parts, and the rules of their classes."""
    if bool(kind) != bool(marked):
        raise Failure("give both or neither of --mark KIND and --marked CLASS=SHARE", USAGE)
    if (directory / "labels.json").exists():
        raise Failure(f"{directory} has a labels.json already; give another directory", USAGE)
    mark = Mark(kind, dict(map(_share, marked)), strength) if kind else None
    written = write_samples(directory, sample_images(count, seed=seed, size=size, mark=mark), mark=mark)
    echo(f"wrote {written} images of {len(CLASSES)} classes to {directory}")


def _share(text: str) -> tuple[str, float]:
    """Reads "woodpecker=0.3"."""
    name, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if name not in CLASSES or not 0 <= value <= 1:
        known = ", ".join(CLASSES)
        raise Failure(f"--marked: {text!r} is no CLASS=SHARE; give a share from 0 to 1 of one of {known}", USAGE)
    return name, value
