"""`sagittal estimate`: what explanations will cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from sagittal.cli.connection import connected
from sagittal.cli.explain import DEFAULT_MODEL, parse_settings
from sagittal.cli.failures import echo
from sagittal.client import Client, Estimate, Method

_BASES = {
    "same_setting": "ended jobs like these",
    "same_method": "ended jobs with other parameters",
    "limit": "the limit alone",
}


@click.command()
@click.option("--images", type=click.IntRange(1), default=1, show_default=True, help="Number of images.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name of a registered model, or name@version.")
@click.option("--method", default="igos++", show_default=True, help="Method; 'sagittal models show' lists them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the method; repeatable.")
@click.option(
    "--max-evaluations",
    type=click.IntRange(0),
    default=0,
    help="Maximum number of model evaluations for each image; 0 for no limit.",
)
@click.option(
    "--price-per-hour",
    type=click.FloatRange(0.0, min_open=True),
    help="Price of an hour of one worker, in any currency; also prints the price of all images.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
@connected
def estimate(
    client: Client,
    *,
    images: int,
    method: str,
    settings: Sequence[str],
    price_per_hour: float | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Estimates what explanations will cost, from the costs of ended jobs. Nothing is queued."""
    found = client.estimate(images=images, method=Method(method, **parse_settings(settings)), **asked)
    if as_json:
        price = {} if price_per_hour is None else {"price": found.price(price_per_hour)}
        echo(json.dumps(asdict(found) | price, indent=2))
        return
    tell_estimate(found, images, price_per_hour)


def tell_estimate(found: Estimate, images: int, price_per_hour: float | None = None, *, err: bool = False) -> None:
    """Prints the expected cost of some images; to standard error with `err`."""
    if not found.basis:
        echo("nothing is known: no job of this method on this model has ended; explain one image first", err=err)
        return
    echo(f"{images:,} images: {found.evaluations:,} model evaluations, from {_BASES[found.basis]}", err=err)
    if found.worker_seconds:
        echo(f"  {found.worker_seconds:,.1f} s of one worker", err=err)
        if price_per_hour is not None:
            echo(
                f"  price {found.price(price_per_hour):,.2f}, at {price_per_hour:g} for an hour of one worker", err=err
            )
    if found.wall_seconds is not None:
        behind = f", behind {found.queued_evaluations:,} queued evaluations" if found.queued_evaluations else ""
        echo(f"  about {found.wall_seconds:,.1f} s on {found.ready_workers} ready workers{behind}", err=err)
    else:
        echo("  time until the end unknown: no worker has the model ready, or no such job has ended", err=err)
