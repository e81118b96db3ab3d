"""The `sagittal` command with its subcommands."""

from importlib.metadata import version

import click

from sagittal.cli.audits import audit
from sagittal.cli.backup import backup, restore
from sagittal.cli.batches import batch
from sagittal.cli.concepts import concepts
from sagittal.cli.estimates import estimate
from sagittal.cli.explain import explain
from sagittal.cli.failures import Group
from sagittal.cli.jobs import cancel, delete, get, list_jobs, report, retry, watch
from sagittal.cli.local import demo, up
from sagittal.cli.models import models, predict
from sagittal.cli.synthetic import demo_data

EPILOG = """
Exit codes: 0 success; 1 the job failed or was refused; 2 the command or request is wrong; 3 the service is
unreachable; 4 an extra of the package is not installed; 130 interrupted.
"""


@click.group(
    cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(version("sagittal"), prog_name="sagittal")
def app() -> None:
    """Explains the predictions of image classifiers."""


for command in (
    up, demo, explain, predict, models, concepts, watch, get, report, list_jobs, cancel, delete, retry, batch, backup,
    restore, estimate, demo_data, audit,
):  # fmt: skip
    app.add_command(command)
