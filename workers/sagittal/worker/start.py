"""The program `sagittal-worker` from its first moment; see `sagittal.process.starting`."""

import os

from sagittal.process.starting import end_on_signals, naming_extra

#: How OpenMP's threads wait for each other. By default they spin for a while, as if each had a processor of its own:
#: where others compute too, or a quota is used up, they spend there what the work needs (`benchmarks/waiting.py`).
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    """Runs a worker until SIGTERM or SIGINT."""
    end_on_signals()
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)  # OpenMP reads it when torch is imported, and not again
    with naming_extra("sagittal-worker", "worker"):
        from sagittal.worker.main import main as work  # noqa: PLC0415 - takes its time, and can be stopped meanwhile

    work()


if __name__ == "__main__":
    main()
