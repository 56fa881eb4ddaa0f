"""`cryptovol reference-set`: what another set of products would change, and recomputed cross features."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import Settings, load_settings
from ingestor.settings.sections import TimescalesSettings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    from cryptovol_dagster.core.specs import TimescaleSpec
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.reference_sets import StoredFeatures, StoredModel

_MB = 1_000_000


@click.command("reference-set")
@click.option(
    "--set",
    "chosen",
    multiple=True,
    metavar="PRODUCT",
    help="A product of the set; once for each, in order (default: timescales.reference_set).",
)
@click.option("--apply", is_flag=True, help="Recompute stored cross features; without it nothing changes.")
@json_option
def reference_set(chosen: tuple[str, ...], apply: bool, as_json: bool) -> None:
    """Show which stored features and models depend on the reference set, and change it.

    Cross features are means over the products of this set, the row's own product left out. Own features, and
    models that read only those, do not depend on it.

    Without --apply: says how many partitions would get new cross features, which models would have to be
    trained again, and how long it takes. With --apply: recomputes the cross features of these partitions from
    their own features. That needs no bars. Each file is replaced in one step, and an interrupted run goes on
    where it stopped. Stop `cryptovol up` or `ui` first. config.yaml is never written; the output names the
    lines.

    \b
    Examples:
      cryptovol reference-set                                   does all that is stored fit the configuration?
      cryptovol reference-set --set BTC-USD --set SOL-USD       what this set would change
      cryptovol reference-set --apply                           change stored features to the configured set
    """
    from cryptovol_dagster.chains import timescale_specs
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports
    from cryptovol_dagster.lake.reference_sets import models_in_use, stored_features

    settings = load_settings().settings
    wanted = _with_set(settings, chosen or settings.timescales.reference_set)
    specs = list(timescale_specs(wanted).values())
    grids = list({spec.grid: spec for spec in specs}.values())
    storage = settings.storage
    lake = Lake(storage.lake_dir)
    with _only_user(settings) if apply else nullcontext():
        found = [(spec, stored_features(lake, spec)) for spec in grids]
        models = list(models_in_use(lake, specs, Reports(storage.reports_dir, storage.artifacts_dir)))
        body = _body(settings, wanted, [features for _, features in found], models)
        if apply:
            body["seconds"] = _apply(lake, found, quiet=as_json)
        else:
            body["estimated_seconds"] = _estimate(lake, found)
    body["applied"] = apply
    if as_json:
        click.echo(json.dumps(body))
        return
    _print(body)


def _with_set(settings: Settings, products: tuple[str, ...]) -> Settings:
    """Return the settings with another reference set.

    Raises:
        UsageError: the set names a product twice, or one that is not followed.
    """
    try:
        timescales = TimescalesSettings(**{**dict(settings.timescales), "reference_set": products})
        Settings(coinbase=settings.coinbase, timescales=timescales)
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return settings.model_copy(update={"timescales": timescales})


@contextmanager
def _only_user(settings: Settings) -> Iterator[None]:
    """Keep `cryptovol up` and `ui` from running on this home until the block ends.

    Raises:
        InstanceError: one of them runs.
    """
    from cryptovol_dagster.machine.instance import ensure_dagster_home, hold_instance

    home = ensure_dagster_home(settings)
    with hold_instance(home, settings.dagster.ui_url, settings.mlflow.ui_url):
        yield


def _apply(lake: Lake, found: list[tuple[TimescaleSpec, StoredFeatures]], *, quiet: bool) -> float:
    from cryptovol_dagster.lake.reference_sets import recompute_cross

    began, total = time.monotonic(), sum(len(features.outdated) for _, features in found)
    work = [(spec, key) for spec, features in found for key in features.outdated]
    with click.progressbar(work, length=total, label="recomputing", hidden=quiet or not total) as steps:
        for spec, key in steps:
            recompute_cross(lake, spec, key)
    return round(time.monotonic() - began, 2)


def _estimate(lake: Lake, found: list[tuple[TimescaleSpec, StoredFeatures]]) -> float:
    """Return how long the outdated partitions take, by the last one of each grid, which is not written."""
    from cryptovol_dagster.lake.reference_sets import with_cross_columns

    seconds = 0.0
    for spec, features in found:
        if features.outdated:
            began = time.monotonic()
            with_cross_columns(lake.read_partition(features.asset, features.outdated[-1]), spec)
            seconds += (time.monotonic() - began) * len(features.outdated)
    return round(seconds, 2)


def _body(
    settings: Settings, wanted: Settings, grids: list[StoredFeatures], models: list[StoredModel]
) -> dict[str, Any]:
    chosen = wanted.timescales.reference_set
    retrained = [model for model in models if model.cross_set and model.cross_set != chosen]
    return {
        "configured": list(settings.timescales.reference_set),
        "set": list(chosen),
        "features": [
            {**asdict(grid), "outdated": len(grid.outdated), "other": len(grid.other)} for grid in grids
        ],
        "models": [asdict(model) | {"train_again": model in retrained} for model in models],
        "chains_to_train": list(dict.fromkeys(model.chain for model in retrained)),
    }


def _print(body: dict[str, Any]) -> None:
    chosen, applied = body["set"], body["applied"]
    click.echo(f"reference set: {', '.join(chosen)} (configured: {', '.join(body['configured'])})")
    columns = (
        "features",
        "partitions",
        "fit",
        "recomputed" if applied else "to recompute",
        "MB",
        "other version",
    )
    rows = [
        [
            grid["asset"],
            *(f"{grid[name]:,}" for name in ("partitions", "current", "outdated")),
            f"{grid['size_bytes'] / _MB:,.1f}",
            f"{grid['other']:,}",
        ]
        for grid in body["features"]
    ]
    print_table(columns, rows, words=("features",))
    for grid in body["features"]:
        for product, count in grid["lacking"].items():
            if count:
                click.echo(
                    f"note: {count:,} of these {grid['asset']} have no row of {product}; the means there "
                    "are over the others"
                )
        if grid["other"]:
            click.echo(
                f"note: {grid['other']:,} {grid['asset']} are of another version: `cryptovol backfill`"
            )
    if body["models"]:
        columns = ("chain", "model in use", "role", "cross features over", "with this set")
        rows = [
            [
                model["chain"],
                model["name"],
                model["role"],
                ", ".join(model["cross_set"]) or "reads none",
                "must be trained again" if model["train_again"] else "fits",
            ]
            for model in body["models"]
        ]
        print_table(columns, rows)
    _print_next(body)


def _print_next(body: dict[str, Any]) -> None:
    """Say what it costs or cost, and what to type next."""
    total = sum(grid["outdated"] for grid in body["features"])
    if body["applied"]:
        click.echo(f"recomputed {total:,} partitions in {body['seconds']:g} s")
    elif total:
        click.echo(
            f"nothing was changed; --apply takes about {body['estimated_seconds']:g} s (by one partition)"
        )
    else:
        click.echo("all stored features fit this set")
    steps = []
    if body["set"] != body["configured"]:
        steps.append(
            "put these lines into config.yaml; until then changed features are refused:\n"
            f"         timescales:\n           reference_set: [{', '.join(body['set'])}]"
        )
    if total and not body["applied"]:
        steps.append("stop `cryptovol up`, then type `cryptovol reference-set --apply`")
    if body["chains_to_train"]:
        steps += [f"train again: `cryptovol evaluate --chain {chain}`" for chain in body["chains_to_train"]]
    for number, step in enumerate(steps, 1):
        click.echo(f"next {number}: {step}")
