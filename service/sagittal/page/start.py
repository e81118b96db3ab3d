"""Entry point of `sagittal-page`; see `sagittal.process.starting`."""

import sys

from sagittal.process.starting import end_on_signals, naming_extra


def main() -> None:
    """Runs the page."""
    end_on_signals()
    with naming_extra("sagittal-page", "page"):
        from sagittal.page.main import main as serve  # noqa: PLC0415 - slow; can be stopped meanwhile

    sys.exit(serve())


if __name__ == "__main__":
    main()
