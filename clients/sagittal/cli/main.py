"""The program `sagittal`."""

import sys

#: Exit code where an extra of the package is not installed.
EXTRA_MISSING = 4


def main() -> None:
    """Runs the command line; says which extra to install where its libraries are missing."""
    try:
        from sagittal.cli.app import app  # noqa: PLC0415 - needs the extra `cli`
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "sagittal":
            raise
        sys.stderr.write(f"sagittal: the command line needs {error.name}: pip install 'sagittal[cli]'\n")
        sys.exit(EXTRA_MISSING)
    app()


if __name__ == "__main__":
    main()
