"""The metric that names the running version."""

from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge


def export_build_info(registry: CollectorRegistry) -> None:
    """Exports `sagittal_build_info`, which is always 1, with the version of the installed package as its label."""
    info = Gauge("sagittal_build_info", "Always 1; the label is the running version.", ["version"], registry=registry)
    info.labels(version("sagittal")).set(1)
