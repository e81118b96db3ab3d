"""The program `sagittal`."""

from sagittal.process.starting import naming_extra


def main() -> None:
    """Runs the command line."""
    with naming_extra("sagittal", "cli"):
        from sagittal.cli.app import app  # noqa: PLC0415 - needs the extra `cli`

    app()


if __name__ == "__main__":
    main()
