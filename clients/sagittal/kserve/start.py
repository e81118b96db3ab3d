"""Entry point of `sagittal-kserve`; see `sagittal.process.starting`."""

import sys

from sagittal.process.starting import end_on_signals, naming_extra


def main() -> None:
    """Runs the explainer."""
    end_on_signals()
    with naming_extra("sagittal-kserve", "kserve"):
        from sagittal.kserve.main import main as serve  # noqa: PLC0415 - slow; can be stopped meanwhile

    sys.exit(serve())


if __name__ == "__main__":
    main()
