"""Explains every picture of a folder over one call: `python examples/pipeline.py examples/images`."""

import sys
from pathlib import Path

import numpy as np

from sagittal.client import Client, IGOSPlusPlus


def main() -> None:
    """Writes a mask beside each picture and prints how good it is."""
    folder = Path(sys.argv[1])
    images = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in {".png", ".jpg", ".jpeg"}}
    with Client("localhost:50051") as client:
        for outcome in client.explain_many(images, model="efficientnet-lite0", method=IGOSPlusPlus(mask_size=28)):
            explanation = outcome.explanation
            if explanation is None or explanation.mask is None or explanation.target is None:
                print(f"{outcome.key}: {outcome.error}")  # noqa: T201 - a script
                continue
            np.save(folder / f"{outcome.key}.mask.npy", explanation.mask)
            print(f"{outcome.key}: {explanation.target.label}, insertion {explanation.insertion:.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
