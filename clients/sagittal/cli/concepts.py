"""`sagittal concepts fit`, `list`, `show`, `name` and `delete`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL
from sagittal.cli.failures import USAGE, Failure, echo
from sagittal.cli.report import dump
from sagittal.client import Client, ConceptSet, FitProgress, XFeature

#: Progress of a fit between two printed lines, as a share of the whole.
STRIDE = 0.05

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

MODEL = click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model.")


@click.group()
def concepts() -> None:
    """Concept sets: a few concepts that predict a model's outputs (XNN)."""


@concepts.command()
@click.argument("name")
@click.argument("images", nargs=-1, type=click.Path(exists=True, path_type=Path))
@MODEL
@click.option("--target", "targets", multiple=True, required=True, help="Index or label of a class; repeatable.")
@click.option("--dataset", default="", help="Name of a dataset of images in the workers' settings.")
@click.option("--layer", default="", help="Layer to read.  [default: the last one with flat output below the output]")
@click.option("-n", "--concepts", "count", type=click.IntRange(1, 32), default=5, show_default=True)
@click.option("--method", type=click.Choice(["srae", "components"]), help="How x-features are found.  [default: srae]")
@click.option("--beta", type=click.FloatRange(0), help="Weight of the reconstruction.")
@click.option("--q", type=click.FloatRange(0), help="Sharpness of the log-sparse reconstruction.")
@click.option("--eta", type=click.FloatRange(0), help="Weight of the pull-away term.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images.")
@click.option("--views", type=click.IntRange(0, 64), default=0, help="Random crops of each image, for small sets.")
@click.option(
    "--parts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='JSON file with annotated parts of images, to measure locality: {"a.jpg": {"beak": [left, top, right, '
    "bottom]}}, edges from 0 to 1.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option("--replace", is_flag=True, help="Replaces a set of the same name.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Directory for contact sheets.")
@connected
def fit(
    client: Client, *, name: str, images: Sequence[Path], model: str, targets: Sequence[str], dataset: str, layer: str,
    count: int, parts: Path | None, output: Path | None, **settings: Any,
) -> None:  # fmt: skip
    """Fits the concept set NAME to IMAGES: files, or directories of images."""
    files = _files(images)
    if bool(files) == bool(dataset):
        raise Failure("give either images, or a dataset with --dataset", USAGE)
    if parts is not None and dataset:
        raise Failure("--parts requires images; the parts of a dataset are in its parts.json", USAGE)
    given = {key: value for key, value in settings.items() if value is not None}
    if parts is not None:
        given["parts"] = read_parts(parts, list(files.values()))
    found = client.concepts.fit(
        list(files),
        name=name,
        model=model,
        targets=[int(target) if target.isdecimal() else target for target in targets],
        on_progress=Teller().say,
        layer=layer,
        dataset=dataset,
        concepts=count,
        **given,
    )
    echo("\n".join(_described(found)))
    for index, file, reason in found.skipped:
        echo(f"skipped {file or list(files)[index]}: {reason}", err=True)
    _write_sheets(found, output)


@concepts.command("list")
@click.option("--model", default="", help="Only sets of this model.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def list_sets(client: Client, *, model: str, as_json: bool) -> None:
    """Lists concept sets."""
    found = list(client.concepts.list(model))
    if as_json:
        echo(dump([_json(each) for each in found]))
        return
    for each in found:
        correlation = each.quality.faithfulness_correlation
        echo(f"{each.model}  {each.name}  {len(each.concepts)} concepts  {each.layer}  r={correlation:.3f}")
    if not found:
        echo("no concept sets", err=True)


@concepts.command()
@click.argument("name")
@MODEL
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Directory for contact sheets.")
@connected
def show(client: Client, *, name: str, model: str, as_json: bool, output: Path | None) -> None:
    """Shows the concept set NAME; with --output, writes a contact sheet of each x-feature."""
    found = client.concepts.get(name, model=model)
    echo(dump(_json(found)) if as_json else "\n".join(_described(found)))
    _write_sheets(found, output)


@concepts.command()
@click.argument("name")
@click.argument("x_feature", type=click.IntRange(1))
@click.argument("title", required=False)
@MODEL
@click.option(
    "--merge-into", type=click.IntRange(1), help="Shows it together with this x-feature; its own number reverts."
)
@click.option("--mixed/--pure", default=None, help="Marks it as mixing several concepts, or as a single one.")
@connected
def name(
    client: Client, *, name: str, x_feature: int, title: str | None, model: str, merge_into: int | None,
    mixed: bool | None,
) -> None:  # fmt: skip
    """Names X_FEATURE (1, 2, ...) of the concept set NAME with TITLE, merges it, or marks it."""
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
    echo("\n".join(_described(found)))


@concepts.command()
@click.argument("name")
@MODEL
@connected
def delete(client: Client, *, name: str, model: str) -> None:
    """Deletes the concept set NAME."""
    client.concepts.delete(name, model=model)
    echo(f"deleted {name}")


def _files(images: Sequence[Path]) -> dict[Path, str]:
    """Returns the given images, those of directories by name, with their names in annotations."""
    found: dict[Path, str] = {}
    for path in images:
        if not path.is_dir():
            found[path] = path.name
            continue
        inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        found |= {each: each.relative_to(path).as_posix() for each in inside}
    return found


def read_parts(path: Path, names: Sequence[str]) -> list[dict[str, tuple[float, float, float, float]]]:
    """Returns the annotated parts of each image. Raises Failure for an invalid file."""
    try:
        listed = json.loads(path.read_text())
    except ValueError as error:
        raise Failure(f"--parts {path} is not JSON: {error}", USAGE) from error
    if not isinstance(listed, dict) or not all(isinstance(parts, dict) for parts in listed.values()):
        raise Failure(f"--parts {path} must be an object that maps each image's file to its parts", USAGE)
    unknown = sorted(set(listed) - set(names))
    if unknown:
        raise Failure(f"--parts {path} names {unknown[0]!r}, which is not one of the images", USAGE)
    for name, parts in listed.items():
        for part, box in parts.items():
            if not (isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) for edge in box)):
                text = f"--parts {path}: {part!r} of {name!r} must be [left, top, right, bottom], each from 0 to 1"
                raise Failure(text, USAGE)
    return [{part: tuple(box) for part, box in listed.get(name, {}).items()} for name in names]


class Teller:
    """Prints the progress of a fit: each phase at its start, then every few percent."""

    def __init__(self) -> None:
        self._said = ("", 0.0)

    def say(self, progress: FitProgress) -> None:
        """Prints the progress, unless it has hardly changed."""
        phase, fraction = self._said
        if progress.phase != phase or progress.fraction >= min(fraction + STRIDE, 1.0):
            self._said = progress.phase, progress.fraction
            _say(progress)


def _say(progress: FitProgress) -> None:
    terms = ""
    if progress.epoch:
        terms = (
            f"  epoch {progress.epoch}  faithfulness {progress.faithfulness:.4f}"
            f"  reconstruction {progress.reconstruction:.4f}  pull-away {progress.pull_away:.4f}"
        )
    job = f"  job {progress.job_id}" if progress.phase == "queued" else ""
    echo(f"{progress.fraction:6.1%}  {progress.phase}{terms}{job}", err=True)


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
    if quality.parts_covered is not None:
        lines.append(
            f"  locality {quality.locality:.2f}: {quality.parts_covered:.1f} parts covered, on {quality.annotated} "
            "annotated images"
        )
    lines += [_line(concept) for concept in found.concepts]
    return lines + [f"  warning {reason}: {message}" for reason, message in found.warnings]


def _line(concept: XFeature) -> str:
    merged = "" if concept.merged_into is None else f"  shown with x{concept.merged_into + 1}"
    return (
        f"  x{concept.index + 1}  {concept.name or '-':<20}  contribution {concept.mean_contribution:+8.3f} "
        f"± {concept.contribution_spread:.3f}  agreement {concept.agreement:5.2f}"
        f"{'  MIXED' if concept.mixed else ''}{merged}{_looks_at(concept)}"
    )


def _looks_at(concept: XFeature) -> str:
    """Returns the annotated parts that an x-feature covers most; empty without annotations."""
    largest = ", ".join(f"{name} {share:.0%}" for name, share in concept.parts[:3])
    return f"  looks at {largest}" if largest else ""


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
                "parts": dict(each.parts),
                "locality": each.locality,
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
    from sagittal.client.drawing.concepts import draw_contact_sheet  # noqa: PLC0415 - matplotlib is slow to load

    os.makedirs(output, exist_ok=True)
    for concept in found.concepts:
        path = output / f"{found.name}-x{concept.index + 1}.png"
        draw_contact_sheet(found, concept, path)
        echo(str(path), err=True)
