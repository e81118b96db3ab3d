"""`python -m sagittal.worker.prefetch`: fetches the weights of a worker's models into its cache, and ends."""

import sys

import structlog

from sagittal.core.models import InvalidModelFile, read_entries
from sagittal.models.sources import ModelUnavailable, read_source
from sagittal.models.sources.files import FileReference
from sagittal.models.sources.stores import fetch
from sagittal.process.logs import configure_logging
from sagittal.process.settings import UnusableSettings, read_settings
from sagittal.worker.settings import WorkerSettings

_log = structlog.get_logger(__name__)


def prefetch(settings: WorkerSettings) -> int:
    """Fetches every file in a store that `models_file` names, and returns their number.

    Raises:
        InvalidModelFile: The model file is wrong.
        ModelUnavailable: A file cannot be fetched, or a source is wrong.
    """
    entries = read_entries(settings.models_file) if settings.models_file else ()
    named = [value for entry in entries for _, value in read_source(entry.source)]
    files = [value for value in named if isinstance(value, FileReference) and value.store]
    for file in files:
        fetch(file.store, file.path, file.sha256, settings.access())
    return len(files)


def main() -> int:
    """Returns 0 if everything is in the cache, 1 if a file could not be fetched, and 2 if a setting is wrong."""
    try:
        settings = read_settings(WorkerSettings)
    except UnusableSettings as error:
        sys.stderr.write(f"sagittal.worker.prefetch: {error}\n")
        return 2
    configure_logging(settings.log_format, settings.log_level)
    try:
        _log.info("weights-in-cache", files=prefetch(settings), cache=str(settings.access().cache_directory))
    except (InvalidModelFile, ModelUnavailable) as error:
        _log.error("prefetch-failed", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
