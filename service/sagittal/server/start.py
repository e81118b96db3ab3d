"""Entry point of `sagittal-service`; see `sagittal.process.starting`."""

from sagittal.process.starting import end_on_signals, naming_extra


def main() -> int:
    """Runs the service and returns its exit status."""
    end_on_signals()
    with naming_extra("sagittal-service", "service"):
        from sagittal.server.main import main as serve  # noqa: PLC0415 - slow; can be stopped meanwhile

    return serve()
