"""`sagittal concepts fit`, `list`, `show`, `name` and `delete`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL
from sagittal.cli.failures import USAGE, Failure
from sagittal.cli.report import dump
from sagittal.client import Client, ConceptSet, FitProgress, XFeature

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

MODEL = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model.")


@click.group()
def concepts() -> None:
    """What a model looks for, in a few concepts (XNN)."""


@concepts.command()
@click.argument("name")
@click.argument("images", nargs=-1, type=click.Path(exists=True, path_type=Path))
@MODEL
@click.option("--target", "targets", multiple=True, required=True, help="Index or label of a class; repeat it.")
@click.option("--dataset", default="", help="Directory of pictures that the workers know by this name.")
@click.option("--layer", default="", help="Layer to read.  [default: the last flat one below the output]")
@click.option("-n", "--concepts", "count", type=click.IntRange(1, 32), default=5, show_default=True)
@click.option("--beta", type=click.FloatRange(0), help="Weight of the reconstruction.")
@click.option("--q", type=click.FloatRange(0), help="Sharpness of the log-sparse reconstruction.")
@click.option("--eta", type=click.FloatRange(0), help="Weight of the pull-away term.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images.")
@click.option("--views", type=click.IntRange(0, 64), default=0, help="Random crops of each image, for small sets.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--replace", is_flag=True, help="Replaces a set of the same name.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Directory for contact sheets.")
@connected
def fit(
    client: Client, *, name: str, images: Sequence[Path], model: str, targets: Sequence[str], dataset: str, layer: str,
    count: int, output: Path | None, **settings: Any,
) -> None:  # fmt: skip
    """Fits the concept set NAME to IMAGES: files, or directories of pictures."""
    files = _files(images)
    if bool(files) == bool(dataset):
        raise Failure("give pictures, or the --dataset of the workers, and not both", USAGE)
    given = {key: value for key, value in settings.items() if value is not None}
    found = client.concepts.fit(
        files,
        name=name,
        model=model,
        targets=[int(target) if target.isdecimal() else target for target in targets],
        on_progress=_say,
        layer=layer,
        dataset=dataset,
        concepts=count,
        **given,
    )
    click.echo("\n".join(_described(found)))
    for index, file, reason in found.skipped:
        click.echo(f"skipped {file or files[index]}: {reason}", err=True)
    _write_sheets(found, output)


@concepts.command("list")
@click.option("--model", default="", help="Only sets of this model.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def list_sets(client: Client, *, model: str, as_json: bool) -> None:
    """Lists concept sets."""
    found = list(client.concepts.list(model))
    if as_json:
        click.echo(dump([_json(each) for each in found]))
        return
    for each in found:
        correlation = each.quality.faithfulness_correlation
        click.echo(f"{each.model}  {each.name}  {len(each.concepts)} concepts  {each.layer}  r={correlation:.3f}")
    if not found:
        click.echo("no concept sets", err=True)


@concepts.command()
@click.argument("name")
@MODEL
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Directory for contact sheets.")
@connected
def show(client: Client, *, name: str, model: str, as_json: bool, output: Path | None) -> None:
    """Shows the concept set NAME; with --output, a contact sheet of each x-feature."""
    found = client.concepts.get(name, model=model)
    click.echo(dump(_json(found)) if as_json else "\n".join(_described(found)))
    _write_sheets(found, output)


@concepts.command()
@click.argument("name")
@click.argument("x_feature", type=click.IntRange(1))
@click.argument("title", required=False)
@MODEL
@click.option(
    "--merge-into", type=click.IntRange(1), help="Shows it together with this x-feature; its own number undoes."
)
@click.option("--mixed/--pure", default=None, help="Marks it as standing for several things, or for one.")
@connected
def name(
    client: Client, *, name: str, x_feature: int, title: str | None, model: str, merge_into: int | None,
    mixed: bool | None,
) -> None:  # fmt: skip
    """Gives X_FEATURE (1, 2, ...) of the concept set NAME a TITLE, merges it, or marks it."""
    index = x_feature - 1
    if title is None and merge_into is None and mixed is None:
        raise Failure("give a title, --merge-into, or --mixed or --pure", USAGE)
    found = client.concepts.update(
        name,
        model=model,
        rename={} if title is None else {index: title},
        merge={} if merge_into is None else {index: merge_into - 1},
        mixed={} if mixed is None else {index: mixed},
    )
    click.echo("\n".join(_described(found)))


@concepts.command()
@click.argument("name")
@MODEL
@connected
def delete(client: Client, *, name: str, model: str) -> None:
    """Deletes the concept set NAME."""
    client.concepts.delete(name, model=model)
    click.echo(f"deleted {name}")


def _files(images: Sequence[Path]) -> Sequence[Path]:
    """Returns the pictures that are named, those of directories by name."""
    found: list[Path] = []
    for path in images:
        inside = (
            sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        )
        found.extend(inside)
    return found


def _say(progress: FitProgress) -> None:
    terms = ""
    if progress.epoch:
        terms = (
            f"  epoch {progress.epoch}  faithfulness {progress.faithfulness:.4f}"
            f"  reconstruction {progress.reconstruction:.4f}  pull-away {progress.pull_away:.4f}"
        )
    job = f"  job {progress.job_id}" if progress.phase == "queued" else ""
    click.echo(f"{progress.fraction:6.1%}  {progress.phase}{terms}{job}", err=True)


def _described(found: ConceptSet) -> list[str]:
    quality = found.quality
    targets = [label or str(index) for index, label in zip(found.targets, found.target_labels, strict=False)]
    stability = "" if quality.stability is None else f", stability {quality.stability:.2f}"
    lines = [
        f"{found.name}  of {found.model} {found.model_version}, layer {found.layer}, for {', '.join(targets)}",
        f"  {found.images} images, {quality.held_out} of them held out; {found.skipped_count} skipped",
        f"  faithfulness r={quality.faithfulness_correlation:.3f}, error {quality.faithfulness_error:.3g}"
        + ("" if quality.class_agreement is None else f", same class {quality.class_agreement:.0%}"),
        f"  pull-away {quality.orthogonality:.4f}, rebuilt {quality.reconstructed_share:.0%}{stability}",
    ]
    lines += [_line(concept) for concept in found.concepts]
    return lines + [f"  warning {reason}: {message}" for reason, message in found.warnings]


def _line(concept: XFeature) -> str:
    merged = "" if concept.merged_into is None else f"  shown with x{concept.merged_into + 1}"
    return (
        f"  x{concept.index + 1}  {concept.name or '-':<20}  contribution {concept.mean_contribution:+8.3f} "
        f"± {concept.contribution_spread:.3f}  agreement {concept.agreement:5.2f}"
        f"{'  MIXED' if concept.mixed else ''}{merged}"
    )


def _json(found: ConceptSet) -> dict[str, Any]:
    quality = found.quality
    return {
        "name": found.name,
        "model": found.model,
        "model_version": found.model_version,
        "model_digest": found.model_digest,
        "layer": found.layer,
        "targets": list(found.targets),
        "quality": {field: getattr(quality, field) for field in quality.__dataclass_fields__},
        "concepts": [
            {
                "index": each.index,
                "name": each.name,
                "mean_contribution": each.mean_contribution,
                "contribution_spread": each.contribution_spread,
                "agreement": each.agreement,
                "mixed": each.mixed,
                "merged_into": each.merged_into,
                "weights": list(each.weights),
            }
            for each in found.concepts
        ],
        "warnings": [{"reason": reason, "message": message} for reason, message in found.warnings],
        "images": found.images,
        "skipped": [{"index": index, "name": name, "reason": reason} for index, name, reason in found.skipped],
    }


def _write_sheets(found: ConceptSet, output: Path | None) -> None:
    if output is None:
        return
    from sagittal.cli.drawing.contact_sheet import draw_contact_sheet  # noqa: PLC0415 - matplotlib is slow to load

    os.makedirs(output, exist_ok=True)
    for concept in found.concepts:
        path = output / f"{found.name}-x{concept.index + 1}.png"
        draw_contact_sheet(found, concept, path)
        click.echo(str(path), err=True)
