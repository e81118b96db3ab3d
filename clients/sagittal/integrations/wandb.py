"""Explanations in Weights & Biases: figures as metrics, overlays as images, and the files as an artefact.

For example::

    with wandb.init(project="faithfulness") as run:
        log_explanation(run, explanation, "chelsea")
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sagittal.client import Explanation
from sagittal.client.extras import import_extra
from sagittal.integrations.records import images_of, metrics_of, tags_of, write_files


def log_explanation(run: Any, explanation: Explanation, name: str, *, step: int | None = None) -> None:
    """Logs an explanation, with its image, to a run: metrics and overlays under `name/`, files as an artefact.

    Args:
        run: The run that `wandb.init` returned.
        explanation: The explanation to log.
        name: Name of the explanation, unique within the run: letters, digits, '-', '_' and '.'.
        step: Step of the metrics.

    Raises:
        FailedPrecondition: the explanation has no image.
        MissingExtra: wandb is not installed.
    """
    wandb = import_extra("wandb", "wandb")
    caption = ", ".join(f"{key} {value}" for key, value in tags_of(explanation).items() if key in ("target", "method"))
    images = {f"{name}/{key}": wandb.Image(image, caption=caption) for key, image in images_of(explanation)}
    metrics = {f"{name}/{metric}": value for metric, value in metrics_of(explanation).items()}
    run.log(metrics | images, step=step)
    artefact = wandb.Artifact(f"explanation-{name}", type="explanation", metadata=dict(tags_of(explanation)))
    with TemporaryDirectory() as directory:
        for path in write_files(explanation, Path(directory)):
            artefact.add_file(str(path), name=path.name)
        run.log_artifact(artefact)
