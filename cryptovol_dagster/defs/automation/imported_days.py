"""The sensor that has the days of a background import computed, and the first models trained on them."""

# No `from __future__ import annotations` here: Dagster reads annotations.

import json
from collections.abc import Sequence

import dagster as dg
import pandas as pd

from cryptovol_dagster.core.specs import TimescaleSpec, market_assets
from cryptovol_dagster.core.times import DAY_NS, partition_window, partitions_between
from cryptovol_dagster.defs.assets.candles import imported_day
from cryptovol_dagster.defs.automation.jobs import AssetJob, asset_keys
from cryptovol_dagster.defs.automation.retrain import UNFINISHED, why_days_not_trained
from cryptovol_dagster.defs.partitions import RANGE_END, RANGE_START
from cryptovol_dagster.history.progress import DONE, Progress, is_importing, read_progress
from cryptovol_dagster.history.store import History
from cryptovol_dagster.lake.files import Lake

_RUN_KEY = "dagster/run_key"


def imported_days_sensor(
    products: Sequence[str], specs: Sequence[TimescaleSpec], market: AssetJob, retrains: Sequence[AssetJob]
) -> dg.SensorDefinition:
    """Build the sensor that requests the minutes' jobs for the days of a background import.

    Args:
        products: products of the candles.
        specs: the chains of the minutes.
        market: the job of a day's market.
        retrains: of each chain.
    """

    @dg.sensor(
        name="imported_days",
        jobs=[market, *retrains],
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="After the import of `cryptovol up`, requests candles to labels of its days, in "
        "one run, then for the first models of each horizon, and last for the days' drift numbers.",
    )
    def imported_days(
        context: dg.SensorEvaluationContext, lake: dg.ResourceParam[Lake], history: dg.ResourceParam[History]
    ) -> dg.SensorResult | dg.SkipReason:
        progress = read_progress(history.root)
        if progress is None:
            return dg.SkipReason("`cryptovol up` has imported no minutes here")
        if progress.state != DONE:
            return dg.SkipReason(progress.sentence(runs=is_importing(history.root)))
        if context.cursor == str(progress.at_ns):
            return dg.SkipReason(f"all imported days up to {progress.last_day} are computed")
        for job in (market, *retrains):
            if context.instance.get_runs(dg.RunsFilter(job_name=job.name, statuses=UNFINISHED), limit=1):
                return dg.SkipReason(f"a run of {job.name} is running or queued")
        # All days are read to find outdated ones, so the cursor records when none is left.
        if context.cursor != (labels := _labels_key(progress)):
            tried = _newest_run(context.instance, labels)
            if tried and not tried.is_success:
                return dg.SkipReason(_why_not_again(tried))
            if not tried and (outdated := outdated_days(lake, history, products, specs, progress)):
                return dg.SensorResult(
                    run_requests=[_labels_request(market, specs, outdated[0], progress)],
                    asset_events=[imported_day(history, products, day) for day in outdated],
                )
            context.update_cursor(labels)
        requests = [
            *_training_requests(retrains, specs, lake, progress),
            *_drift_request(market, specs, lake, progress),
        ]
        if not requests:
            context.update_cursor(str(progress.at_ns))
            return dg.SkipReason(f"all imported days up to {progress.last_day} are computed")
        # One at a time. Dagster enforces a pool's limit only from the second pass over its queue: two first
        # trainings requested together would run together. A failed one does not stop the others.
        failed = []
        for request in requests:
            tried = _newest_run(context.instance, request.run_key)
            if tried is None:
                return dg.SensorResult(run_requests=[request])
            failed.append(tried)
        return dg.SkipReason(_why_not_again(failed[0]))

    return imported_days


def _labels_key(progress: Progress) -> str:
    return f"labels of {progress.at_ns}"


def _labels_request(
    market: AssetJob, specs: Sequence[TimescaleSpec], first: str, progress: Progress
) -> dg.RunRequest:
    """Request all days from the first outdated one on, as each reads those before it."""
    drift = {spec.asset("drift_scores") for spec in specs}
    assets = [asset for asset in market_assets(specs) if asset not in drift]
    return _range_request(_labels_key(progress), market, assets, first, progress)


def _training_requests(
    retrains: Sequence[AssetJob], specs: Sequence[TimescaleSpec], lake: Lake, progress: Progress
) -> list[dg.RunRequest]:
    return [
        dg.RunRequest(f"{job.name} of {progress.at_ns}", job_name=job.name, partition_key=newest)
        for spec, job in zip(specs, retrains, strict=True)
        if (newest := max(lake.partitions(spec.asset("labels")), default=""))
        and not why_days_not_trained(lake, spec, newest, missed_only=True)
    ]


def _drift_request(
    market: AssetJob, specs: Sequence[TimescaleSpec], lake: Lake, progress: Progress
) -> list[dg.RunRequest]:
    """Request the drift numbers of labelled days last: no job needs them, and they take half the time."""
    assets = [spec.asset("drift_scores") for spec in specs]
    labelled = lake.written(specs[-1].asset("labels"), *progress.window)
    missing = [day for day in labelled if not all(lake.exists(asset, day, "json") for asset in assets)]
    if not missing:
        return []
    return [_range_request(f"drift of {progress.at_ns}", market, assets, missing[0], progress)]


def _range_request(
    run_key: str, job: AssetJob, assets: Sequence[str], first: str, progress: Progress
) -> dg.RunRequest:
    return dg.RunRequest(
        run_key,
        job_name=job.name,
        asset_selection=asset_keys(assets),
        tags={RANGE_START: first, RANGE_END: progress.last_day},
    )


def _newest_run(instance: dg.DagsterInstance, run_key: str | None) -> dg.DagsterRun | None:
    """Return the newest run of a request; there is one request of each kind per import."""
    return next(iter(instance.get_runs(dg.RunsFilter(tags={_RUN_KEY: run_key or ""}), limit=1)), None)


def _why_not_again(tried: dg.DagsterRun) -> str:
    return (
        f"run {tried.run_id} of {tried.job_name} ended and something is still missing: see its error; "
        "the next start of `cryptovol up` tries again"
    )


def outdated_days(
    lake: Lake,
    history: History,
    products: Sequence[str],
    specs: Sequence[TimescaleSpec],
    progress: Progress,
) -> list[str]:
    """Return the whole days with imported candles that are missing in the lake, or have no labels yet.

    Args:
        lake: the computed partitions.
        history: the imported candles.
        products: whose candles count.
        specs: the chains of the minutes.
        progress: whose days.
    """
    start_ns, end_ns = progress.window
    candles = history.read_products(products, start_ns, end_ns)
    days = pd.Series(candles["start_ns"].to_numpy() // DAY_NS * DAY_NS)
    counts = candles.groupby([days, candles["product"].to_numpy()]).size()
    outdated = []
    for day in partitions_between(start_ns, end_ns, DAY_NS):
        imported = counts.get(partition_window(day)[0])
        if imported is None:
            continue
        taken = _candles_taken(lake, specs[0], day)
        is_complete = all(rows <= taken.get(str(product), 0) for product, rows in imported.items())
        if not (is_complete and all(lake.exists(spec.asset("labels"), day) for spec in specs)):
            outdated.append(day)
    return outdated


def _candles_taken(lake: Lake, grid: TimescaleSpec, day: str) -> dict[str, int]:
    """Return the number of imported candles among the lake's candles of a day, by product."""
    asset = grid.asset("candles")
    if not lake.exists(asset, day, "json"):
        return {}
    summary = json.loads(lake.read_bytes(asset, day, "json"))
    return {product: sources["history"] for product, sources in summary["products"].items()}
