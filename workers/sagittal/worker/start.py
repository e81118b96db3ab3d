"""The program `sagittal-worker` from its first moment; see `sagittal.runtime.starting`."""

from sagittal.runtime.starting import end_on_signals


def main() -> None:
    """Runs a worker until SIGTERM or SIGINT."""
    end_on_signals()
    from sagittal.worker.main import main as work  # noqa: PLC0415 - it takes its time, and can be stopped meanwhile

    work()
