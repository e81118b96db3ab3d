"""Failures of a batch: one line of `failures.jsonl` for each key, with the reason and a remedy."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sagittal.client.batches import BatchResult
from sagittal.client.errors import (
    Expired,
    InvalidImage,
    InvalidRequest,
    JobBuried,
    JobCancelled,
    ModelFailed,
    SagittalError,
)

#: Remedy for each class of error; the first match applies.
_REMEDIES: tuple[tuple[type[SagittalError], str], ...] = (
    (InvalidImage, "Repair or replace the image, then run `sagittal batch retry`."),
    (InvalidRequest, "Correct the row of the manifest, then run `sagittal batch retry`."),
    (JobBuried, "Workers died with this image: look at the log of the workers, then run `sagittal batch retry`."),
    (ModelFailed, "Check `sagittal models show`, then run `sagittal batch retry`."),
    (Expired, "Allow a longer deadline or fewer iterations, then run `sagittal batch retry`."),
    (JobCancelled, "Run `sagittal batch retry`; if the batch was cancelled, start another."),
)


def read_failures(directory: Path) -> Iterator[dict[str, Any]]:
    """Yields the failures in a directory, one for each key."""
    path = directory / "failures.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def failure_document(result: BatchResult) -> dict[str, Any]:
    """Returns why an item failed, and what to do."""
    error = result.error
    return {
        "key": result.key,
        "state": result.state,
        "reason": error.reason if error else "RESULT_DELETED",
        "message": error.message if error else "its result was deleted before it was stored",
        "field": error.field if error else "",
        "remedy": remedy_for(error),
        "job_id": result.job_id,
    }


def failure_line(document: Mapping[str, Any]) -> str:
    """Returns a failure as a line of the file."""
    return json.dumps(document, ensure_ascii=False) + "\n"


def remedy_for(error: SagittalError | None) -> str:
    """Returns what to do about an error of an item."""
    if error is not None and error.field == "unreadable":
        return "Correct the row of the manifest, or the file that it names, then run `sagittal batch retry`."
    return next((text for kind, text in _REMEDIES if isinstance(error, kind)), "Run `sagittal batch retry`.")
