"""Explains every picture of a folder over one call: `python examples/pipeline.py examples/images out`."""

import os
import sys
from pathlib import Path

import numpy as np

from sagittal.client import Client, IGOSPlusPlus

ADDRESS = os.environ.get("SAGITTAL_ADDRESS", "localhost:50051")


def main() -> None:
    """Writes each picture's mask into a second folder and prints how good it is."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    images = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in {".png", ".jpg", ".jpeg"}}
    with Client(ADDRESS) as client:
        for outcome in client.explain_many(images, model="efficientnet-lite0", method=IGOSPlusPlus(mask_size=28)):
            explanation = outcome.explanation
            if explanation is None or explanation.mask is None or explanation.target is None:
                print(f"{outcome.key}: {outcome.error}")  # noqa: T201 - a script
                continue
            np.save(out / f"{outcome.key}.mask.npy", explanation.mask)
            print(f"{outcome.key}: {explanation.target.label}, insertion {explanation.insertion:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
