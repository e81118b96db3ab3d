"""Entry point of `sagittal-worker`, with handlers of early signals; see `sagittal.process.starting`."""

import os

from sagittal.process.starting import end_on_signals, keeping_imports, naming_extra

#: OpenMP's wait policy. By default its threads spin for a while, as if each had its own processor. If other processes
#: compute too, or a quota is exhausted, spinning consumes the time that the work needs (`benchmarks/waiting.py`).
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    """Runs a worker until SIGTERM or SIGINT."""
    end_on_signals()
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)  # OpenMP reads it only when torch is imported
    with keeping_imports(), naming_extra("sagittal-worker", "worker"):
        from sagittal.worker.main import main as work  # noqa: PLC0415 - a slow import, during which signals must work

    work()


if __name__ == "__main__":
    main()
