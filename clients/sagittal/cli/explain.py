"""`sagittal explain`, and its common parts with `sagittal demo`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import click
import numpy as np

from sagittal.cli.connection import connected
from sagittal.cli.failures import FAILED, USAGE, Failure, echo
from sagittal.cli.report import dump
from sagittal.cli.terminal import LiveReporter, PlainReporter, effort, make_reporter
from sagittal.client import Baseline, Client, Explanation, Method, Metrics, RobustnessTest
from sagittal.core.errors import SagittalError as CoreError
from sagittal.core.images import ImageLimits, check
from sagittal.v1 import tensor_pb2

BaselineName = Literal["blur", "black", "mean", "noise"]
DEFAULT_MODEL = "efficientnet-lite0"
Reporter = LiveReporter | PlainReporter

#: Limits that guard this process; the service has its own for admission.
_LIMITS = ImageLimits(max_bytes=256 * 2**20, max_pixels=256_000_000, memory=8 * 2**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The request on the command line."""

    image: Path
    model: str
    method: str
    parameters: Mapping[str, Any]
    target: str | None
    baseline: str
    seed: int
    max_evaluations: int
    deadline: float | None
    cache: Literal["use", "refresh", "bypass"]
    protocol: Literal["mask", "pixel"]
    predictability: int = 0
    stability: int = 0
    robust: bool = False


@click.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model.")
@click.option("--method", default="igos++", show_default=True, help="Method; 'sagittal models show' lists them.")
@click.option("--target", help="Index or label of the class to explain.  [default: the model's top class]")
@click.option("--mask-size", type=int, help="Side of the square mask in cells; short for --set mask_size=N.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of the method; repeatable. @FILE.npy gives an array.",
)
@click.option(
    "--baseline", default="blur", show_default=True, help="blur, black, mean, noise, or the file of an image."
)
@click.option(
    "--max-evaluations", type=click.IntRange(0), default=0, help="Maximum number of model evaluations; 0 for no limit."
)
@click.option("--deadline", type=click.FloatRange(0, min_open=True), help="Maximum time of the job, in seconds.")
@click.option(
    "--cache",
    type=click.Choice(["use", "refresh", "bypass"]),
    default="use",
    show_default=True,
    help="Whether a cached result may be returned.",
)
@click.option(
    "--curves",
    "protocol",
    type=click.Choice(["mask", "pixel"]),
    default="mask",
    show_default=True,
    help="Resolution of insertion and deletion.",
)
@click.option(
    "--stability",
    type=click.IntRange(0, 15),
    default=0,
    metavar="N",
    help="Also runs the method with N other seeds, and reports how much the heatmap changes.",
)
@click.option("--robust", is_flag=True, help="Tests sufficient sets after JPEG and shifts, and on drawn backgrounds.")
@click.option(
    "--predictability",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Also measures how well the explanation predicts the model on N random occlusions, such as 200.",
)
@click.option(
    "-o",
    "--output",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for images and data.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints only explanation.json to standard output.")
@connected
def explain(
    client: Client,
    *,
    directory: Path | None,
    as_json: bool,
    mask_size: int | None,
    settings: Sequence[str],
    **asked: Any,
) -> None:
    """Explains a model's prediction on IMAGE."""
    parameters = parse_settings(settings) | ({"mask_size": mask_size} if mask_size is not None else {})
    question = Question(parameters=parameters, **asked)
    check_readable(question.image)
    with make_reporter(question.model, to_the_end=as_json) as reporter:
        explanation = ask(client, question, reporter)
        files = draw(client, question, explanation, directory) if directory else {}
    if as_json:
        echo(dump(explanation.to_dict() | {"files": dict(files)}))
    else:
        tell(explanation, directory, files)


def ask(client: Client, question: Question, reporter: Reporter) -> Explanation:
    """Explains an image and reports the progress. Ctrl-C cancels the job."""
    return client.explain(
        question.image,
        on_event=reporter.take,
        model=question.model,
        method=Method(question.method, **question.parameters),
        target=_target(question.target),
        baseline=_baseline(question.baseline),
        metrics=Metrics(
            protocol=question.protocol,
            predictability=question.predictability,
            stability=question.stability,
            robustness=RobustnessTest() if question.robust else None,
        ),
        seed=question.seed,
        max_evaluations=question.max_evaluations,
        deadline=question.deadline,
        cache=question.cache,
        progress_interval=0.1,
    )


def draw(client: Client, question: Question, explanation: Explanation, directory: Path) -> Mapping[str, str]:
    """Writes the images and data of an explanation; returns the file names by content."""
    from sagittal.cli.files import write_files  # noqa: PLC0415 - matplotlib is slow to load

    if explanation.prediction is None:
        raise Failure("the service sent no prediction, so there is nothing to draw", FAILED)
    if explanation.image is None:  # stored by a worker that did not report the preprocessing
        preprocessing = client.model(question.model, version=explanation.model_version).preprocessing
        given = None if question.baseline in get_args(BaselineName) else Path(question.baseline)
        explanation = explanation.with_image(question.image, preprocessing=preprocessing, baseline=given)
    return write_files(explanation, directory)


def tell(explanation: Explanation, directory: Path | None, files: Mapping[str, str]) -> None:
    """Prints a summary of the result to standard output."""
    target, completed = explanation.target, explanation.completed
    name = (target.label or f"class {target.index}") if target else "the image"
    how = f"{explanation.method} on {explanation.model}"
    echo(f"explained {name} by {how}" + (f": {effort(completed)}" if completed else ""))
    for line in areas(explanation):
        echo(line)
    if explanation.sufficient_sets:
        sizes = [len(each.patches.patches) for each in explanation.sufficient_sets]
        one = f"a sufficient set of {sizes[0]} patches"
        echo(one if len(sizes) == 1 else f"{len(sizes)} sufficient sets, the smallest of {min(sizes)} patches")
    for found in explanation.sufficient_sets:
        if found.certificate.robust is not None:
            echo(f"  {len(found.patches.patches)} patches: {found.certificate.robust.text}")
    said = explanation.concept_prediction
    if said is not None:
        echo(f"the concepts add up to {said.predicted:+.3g}; the model's own output is {said.output:+.3g}")
        for each in sorted(explanation.concepts, key=lambda one: -abs(one.contribution)):
            echo(f"  {each.contribution:+8.3f}  x{each.index + 1} {each.name}".rstrip())
    for warning in explanation.warnings:
        echo(f"warning: {warning.message} ({warning.reason})")
    if directory:
        echo(f"files in {directory}: {', '.join(dict.fromkeys(files.values()))}")
    else:
        echo(f"job {explanation.job_id}; give -o DIR to write images")


def areas(explanation: Explanation) -> Iterator[str]:
    """Yields a line for each curve, its area raw and relative to the unmasked score, and one for predictability."""
    for name, area, relative, good in (
        ("insertion", explanation.insertion, explanation.relative_insertion, "high"),
        ("deletion", explanation.deletion, explanation.relative_deletion, "low"),
    ):
        if area is not None:
            share = f", relative to the unmasked score {relative:.2f}" if relative is not None else ""
            yield f"{name} {area:.3f}{share} ({good} is good)"
    completed = explanation.completed
    if completed is not None and completed.predictability_auroc is not None:
        right = completed.predictability_balanced_accuracy or 0.0
        yield f"predictability {completed.predictability_auroc:.3f} AUROC, balanced accuracy {right:.0%}"
    if explanation.surrogate is not None:
        yield f"surrogate: {explanation.surrogate.text}"
    if explanation.stability is not None:
        yield f"stability: {explanation.stability.text}"


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Returns KEY=VALUE pairs as text, which the service converts, except for arrays, which are read here."""
    parameters: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise click.BadParameter(f"{setting!r}; expected KEY=VALUE", param_hint="--set")
        parameters[key.replace("-", "_")] = _array(value[1:]) if value.startswith("@") else value
    return parameters


def check_readable(image: Path) -> None:
    """Raises a Failure for a file that is not an image, before anything is sent."""
    try:
        check(tensor_pb2.Image(encoded=image.read_bytes()), _LIMITS)
    except CoreError as error:
        raise Failure(f"{image}: {error.message}", USAGE) from error


def _array(path: str) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path}: cannot be read as .npy: {error}", param_hint="--set") from error


def _target(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _baseline(text: str) -> Baseline | BaselineName:
    if text in get_args(BaselineName):
        return cast("BaselineName", text)
    if not Path(text).is_file():
        raise click.BadParameter(f"{text!r}; expected blur, black, mean, noise, or a file", param_hint="--baseline")
    return Baseline(kind="image", image=text)
