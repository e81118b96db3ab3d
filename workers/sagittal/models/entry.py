"""Model entries and the files that hold them; see `core.entries` and `core.model_files`."""

from sagittal.core.entries import ModelEntry, Preprocessing
from sagittal.core.model_files import InvalidModelFile, parse_entries, read_entries

__all__ = ["InvalidModelFile", "ModelEntry", "Preprocessing", "parse_entries", "read_entries"]
