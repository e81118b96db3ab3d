"""Explanations in MLflow: figures as metrics, images and files as artefacts, and an evaluator of image classifiers.

For example::

    with mlflow.start_run():
        log_explanation(explanation, "chelsea")

    evaluate_classifier(client, images, model="efficientnet-lite0", method=IGOSPlusPlus())
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack

from sagittal.client import Client, Explanation, ImageLike, Outcome, Table
from sagittal.client.extras import import_extra
from sagittal.client.requests import BatchOptions
from sagittal.integrations.records import metrics_of, tags_of, write_files

#: Figures of which an evaluation logs the mean.
MEANS = ("score", "insertion", "deletion", "relative_insertion", "relative_deletion", "smallest_set", "seconds")


def log_explanation(explanation: Explanation, name: str, *, run_id: str | None = None, step: int | None = None) -> None:
    """Logs an explanation, with its image, to the active run: metrics under `name/`, files below `explanations/name`.

    Args:
        explanation: The explanation to log.
        name: Name of the explanation, unique within the run.
        run_id: The run to log to; None for the active one.
        step: Step of the metrics.

    Raises:
        FailedPrecondition: the explanation has no image.
        MissingExtra: mlflow is not installed.
    """
    mlflow = import_extra("mlflow", "mlflow")
    metrics = {f"{name}/{metric}": value for metric, value in metrics_of(explanation).items()}
    mlflow.log_metrics(metrics, step=step, run_id=run_id)
    with TemporaryDirectory() as directory:
        for path in write_files(explanation, Path(directory)):
            mlflow.log_artifact(str(path), f"explanations/{name}", run_id=run_id)
        tags = Path(directory) / "tags.json"
        mlflow.log_dict(dict(tags_of(explanation)), f"explanations/{name}/{tags.name}", run_id=run_id)


def evaluate_classifier(
    client: Client, images: Mapping[str, ImageLike], *, keep: int = 10, **options: Unpack[BatchOptions]
) -> Mapping[str, float]:
    """Explains images with a classifier and logs the quality of the explanations to the active run.

    It logs the means of the figures, the number of failed images, a table of all images (`explanations.json`), and the
    first `keep` explanations completely.

    Args:
        client: A connection to the service that has the model.
        images: The images by name.
        keep: Number of explanations that are logged completely.
        options: See `BatchOptions`.

    Returns:
        The metrics that were logged.
    """
    mlflow = import_extra("mlflow", "mlflow")
    outcomes: list[Outcome] = []
    for outcome in client.explain_many(images, **options):
        outcomes.append(outcome)
        if outcome.explanation is not None and len(outcomes) <= keep:
            log_explanation(outcome.explanation.with_image(images[outcome.key]), outcome.key)
    metrics = _means(outcomes)
    mlflow.log_metrics(dict(metrics))
    outcomes.sort(key=lambda each: each.key)
    table = Table(outcomes)
    columns = {name: [row.get(name) for row in table] for name in table.columns}
    mlflow.log_dict(
        {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]},
        "explanations.json",
    )
    return metrics


def _means(outcomes: list[Outcome]) -> Mapping[str, float]:
    found = [metrics_of(each.explanation) for each in outcomes if each.explanation is not None]
    means = {"images": float(len(outcomes)), "failed": float(sum(each.error is not None for each in outcomes))}
    for name in MEANS:
        values = [metrics[name] for metrics in found if name in metrics]
        if values:
            means[f"mean_{name}"] = sum(values) / len(values)
    return means
