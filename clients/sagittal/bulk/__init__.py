"""Very many images: manifests that name them, and a directory for their results.

    from sagittal.bulk import Output, open_manifest

`sagittal batch` is made of these. They need the extra `bulk` (pyarrow, fsspec, safetensors) of the package.
"""

from sagittal.bulk.manifests import Manifest, ManifestError, open_manifest
from sagittal.bulk.output import Output, OutputError

__all__ = ["Manifest", "ManifestError", "Output", "OutputError", "open_manifest"]
