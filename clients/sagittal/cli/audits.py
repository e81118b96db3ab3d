"""`sagittal audit`: finds what a model should not be looking at."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sagittal.audit.candidates import SUSPECTED
from sagittal.audit.dataset import METRICS, read_dataset
from sagittal.audit.findings import SEVERITIES, Audit, Thresholds, compare, describe, junit
from sagittal.audit.interventions import RECEIVERS
from sagittal.audit.report import comparison_html, without_sets
from sagittal.audit.runs import audit as audit_evidence
from sagittal.audit.runs import read_evidence
from sagittal.audit.scores import ServiceScores
from sagittal.audit.sufficiency import PAPER_AREA, Estimate, SetsChange, compare_sets, why_not_comparable
from sagittal.bulk.failures import read_failures
from sagittal.bulk.runs import Plan, new_name
from sagittal.cli.batches import batch_options, explain_items, flowing, forget_failures
from sagittal.cli.connection import connected
from sagittal.cli.estimates import tell_estimate
from sagittal.cli.explain import DEFAULT_MODEL, parse_settings
from sagittal.cli.failures import FAILED, Failure, echo
from sagittal.client import Client, InvalidRequest, Method

_FAIL_ON = click.Choice([*SEVERITIES, "never"])

#: Model evaluations of the interventions on one candidate, at most.
_FOR_A_CANDIDATE = 216

#: Images that were not explained, of which the terminal names at most so many.
_LISTED = 20

_gate_options = (
    click.option(
        "--fail-on", type=_FAIL_ON, default="never", show_default=True,
        help="Exit code 1 if there is a finding of this severity or above.",
    ),
    click.option("--junit", "junit_file", type=click.Path(dir_okay=False, path_type=Path), help="Writes JUnit XML."),
)  # fmt: skip
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _gated(command: Any) -> Any:
    for option in reversed(_gate_options):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Finds spurious reasons of a model in a labelled data set, and confirms them by interventions."""


@audit.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out", "directory", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory of results."
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model, or name@version.")
@click.option("--method", default="igos++", show_default=True, help="Method; 'sagittal models show' lists them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the method; repeatable.")
@click.option("--masks", type=click.Path(file_okay=False, path_type=Path), help="Folder of object masks.")
@click.option("--classes", type=_file, help="JSON: the model's label or index for each label of the data set.")
@click.option("--groups", type=_file, help="JSON: the group of each label; images of a group are searched together.")
@click.option("--thresholds", "thresholds_file", type=_file, help="TOML: false_discovery_rate, low, medium, high.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random choices.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Prints the expected cost and ends.")
@_gated
@flowing
@connected
def run(
    client: Client,
    *,
    source: Path,
    directory: Path,
    model: str,
    method: str,
    settings: Sequence[str],
    masks: Path | None,
    classes: Path | None,
    groups: Path | None,
    thresholds_file: Path | None,
    seed: int,
    only_estimate: bool,
    fail_on: str,
    junit_file: Path | None,
    **flow: Any,
) -> None:
    """Audits a model on the labelled images of SOURCE.

    SOURCE is a folder with one folder of images for each class, or a CSV, TSV, JSON or JSONL table with the columns
    image and label, and perhaps boxes, mask and group. Run the same command again to continue after an interruption.
    """
    thresholds = Thresholds.read(thresholds_file) if thresholds_file else Thresholds()
    before = Plan.of(directory)
    options = batch_options(
        client, settings, before, model=model, method=method, target=None, baseline="blur", seed=seed,
        max_evaluations=0,
    )  # fmt: skip
    registered = client.model(options["model"], version=options["model_version"])
    dataset = read_dataset(
        source, registered, classes=_mapping(classes, "classes"), groups=_mapping(groups, "groups"), masks=masks
    )
    found = client.estimate(
        images=len(dataset.images), model=registered.name, model_version=registered.version,
        method=Method(method, **parse_settings(settings)), metrics=METRICS,
    )  # fmt: skip
    tell_estimate(found, len(dataset.images), err=True)
    then = f"then up to {SUSPECTED} model evaluations for each image, {_FOR_A_CANDIDATE} for each candidate"
    echo(f"{then}, and {RECEIVERS} for each image of a finding's group", err=True)
    for name, why in dataset.left_out.items():
        echo(f"left out: {name}: {why}", err=True)
    if only_estimate:
        return
    # `sagittal batch resume` would explain other classes than the labels: it finds no manifest of this name
    name = before.name if before else new_name(directory)
    plan = Plan(name=name, manifest=f"sagittal audit run {source}", options=options)
    if before is not None and any(read_failures(directory)):
        forget_failures(client, directory, plan)
    explain_items(client, directory, plan, manifest=dataset.manifest(), **flow)
    explained = read_evidence(dataset, directory, registered)
    scores = ServiceScores(client, registered, directory / "scores.jsonl")

    def tell(done: int, of: int) -> None:
        echo(f"{done:,} of {of:,} candidates tested, {scores.evaluations:,} evaluations", err=True)

    result = audit_evidence(
        dataset, explained, registered, scores, directory, thresholds=thresholds, seed=seed, on_tested=tell
    )
    _tell(result, directory)
    _gate(result, fail_on, junit_file)


@audit.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Writes a report as HTML.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@_gated
def compare_audits(
    *, old: Path, new: Path, out: Path | None, as_json: bool, fail_on: str, junit_file: Path | None
) -> None:
    """Compares the audits in the directories OLD and NEW: of one model before and after training, or of two models.

    With --fail-on, only findings that are new or stronger in NEW fail.
    """
    earlier, later = Audit.load(old), Audit.load(new)
    changes = compare(earlier, later)
    if out is not None:
        out.write_text(comparison_html(earlier, later, changes), encoding="utf-8")
    if as_json:
        rows = [
            {"state": each.state, "severity": each.finding.severity, "finding": each.finding.id} for each in changes
        ]
        document = {"findings": rows, "sufficient_sets": list(_set_rows(earlier, later))}
        echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for each in changes:
            echo(f"{each.state}: {each.finding.severity}: {describe(each.finding)}")
        if not changes:
            echo("neither audit has a finding")
        _tell_sets(earlier, later)
    _gate(later.only([each.after for each in changes if each.worse and each.after]), fail_on, junit_file)


def _set_rows(earlier: Audit, later: Audit) -> Iterator[Mapping[str, Any]]:
    if earlier.sufficient_sets is None or later.sufficient_sets is None:
        return
    for each in compare_sets(earlier.sufficient_sets, later.sufficient_sets):
        yield {
            "group": each.group, "statistic": each.statistic, "at": each.at, "changed": each.changed,
            "before": _estimate(each.before), "after": _estimate(each.after),
        }  # fmt: skip


def _estimate(each: Estimate) -> Mapping[str, float]:
    return {"mean": each.mean, "low": each.low, "high": each.high}


def _tell_sets(earlier: Audit, later: Audit) -> None:
    """Prints a line for each group: the locality at the area of the paper, and the number of explanations."""
    lacking = [each for each in (earlier, later) if each.sufficient_sets is None]
    if lacking:
        echo(f"note: {without_sets(lacking[0])}", err=True)
    if earlier.sufficient_sets is None or later.sufficient_sets is None:
        return
    if doubt := why_not_comparable(earlier.sufficient_sets, later.sufficient_sets):
        echo(f"note: {doubt}", err=True)
    changes = list(compare_sets(earlier.sufficient_sets, later.sufficient_sets))
    for group in dict.fromkeys(each.group for each in changes):
        parts = [_change_text(each) for each in changes if each.group == group and _is_told(each)]
        echo(f"sufficient sets, {'all images' if group is None else group}: {'; '.join(parts)}")


def _is_told(change: SetsChange) -> bool:
    return change.statistic == "diverse" or (change.statistic == "locality" and change.at == PAPER_AREA)


def _change_text(change: SetsChange) -> str:
    changed = ", changed" if change.changed else ""
    return f"{change.name} {change.before.text} before, {change.after.text} after{changed}"


def _mapping(path: Path | None, field: str) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidRequest(f"{path} is no JSON: {error}", field=field) from error
    if not isinstance(given, Mapping) or not all(isinstance(each, str | int) for each in given.values()):
        raise InvalidRequest(f'{path} is no object such as {{"label": "value"}}', field=field)
    return given


def _tell(result: Audit, directory: Path) -> None:
    for note in result.notes:
        echo(f"note: {note}", err=True)
    for key, why in list(result.failures.items())[:_LISTED]:
        echo(f"not explained: {key}: {why}", err=True)
    for each in result.findings:
        echo(f"{each.severity}: {describe(each)}")
    echo(f"{len(result.findings):,} findings of {len(result.tested):,} candidates: {directory / 'report.html'}")


def _gate(result: Audit, fail_on: str, junit_file: Path | None) -> None:
    """Writes JUnit XML if asked for, and fails if there are findings of this severity or above."""
    severe = [] if fail_on == "never" else result.at_least(fail_on)
    if junit_file is not None:
        junit_file.write_text(junit(result, severe), encoding="utf-8")
    if severe:
        number = len(severe)
        raise Failure(f"{number:,} finding{'' if number == 1 else 's'} of severity {fail_on} or above", FAILED)
