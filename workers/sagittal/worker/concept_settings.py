"""Settings of concept sets."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ConceptSettings(BaseModel):
    """Where concept sets are kept, and what they may be fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    directory: Path | None = None
    """Directory of the concept sets, which all workers share and can write. Not set: no set can be fitted or read."""
    datasets: dict[str, Path] = {}
    """Directories of pictures that sets may be fitted to, by name, as JSON. Any caller may name them, and sees the
    pictures that excite a concept."""
    max_feature_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024 * 1024
    """Bytes of extracted features that are kept in the directory; the oldest go first. 0 keeps none."""
