"""The first days on the real market: the process that imports past minutes, and its progress.

Belongs here: the import process beside the recorder, and its lines in `up` and `status`. Does not belong
here: the import (`history/last_days.py`), computation on it (`defs/automation/imported_days.py`).

    python -m cryptovol_dagster.machine.first_days
"""

from __future__ import annotations

import math
import os
import signal
import sys
from datetime import UTC, datetime

from cryptovol_dagster.chains import minutes_specs
from cryptovol_dagster.core.learning.splits import least_partitions
from cryptovol_dagster.core.specs import HOUR_S, TimescaleSpec
from cryptovol_dagster.core.times import partition_window
from cryptovol_dagster.history.progress import DONE, is_importing, read_progress
from cryptovol_dagster.history.store import History, HistoryError
from cryptovol_dagster.lake import plans
from cryptovol_dagster.lake.datasets import ChainError
from cryptovol_dagster.lake.files import Lake, LakeError
from ingestor.errors import CryptovolError
from ingestor.settings import Settings, load_settings

#: The recorder has priority.
NICENESS = 5


def is_wanted(settings: Settings) -> bool:
    """Return whether the configuration requests the minutes of the last days."""
    return settings.timescales.minutes.enabled and settings.history.first_import_days > 0


def announcement(settings: Settings, *, trains: bool = True) -> str:
    """Return one line on the coming import of `cryptovol up`.

    Args:
        settings: the configuration.
        trains: whether Dagster is started, which computes the days and trains models on them.
    """
    from cryptovol_dagster.history.api import PAGE_MINUTES  # an HTTP client, which `status` need not load

    first, products = settings.dagster.minutes_start, settings.coinbase.products
    days = min(settings.history.first_import_days, (datetime.now(UTC).date() - first).days)
    if days < 1:
        return f"{'minutes':<9}days before {first} (dagster.minutes_start) are not imported"
    history = History(settings.storage.history_dir)
    if any(history.months(product) for product in products):
        return f"{'minutes':<9}missing minutes of the last {days} days are imported in the background"
    pages = math.ceil(days * 1_440 / PAGE_MINUTES) * len(products)
    took = math.ceil(pages / settings.history.requests_per_s / 60)
    then = ", then models learn from them" if trains else ""
    return (
        f"{'minutes':<9}none yet: the last {days} days of {', '.join(products)} are imported in the "
        f"background ({took} min or more){then} (--no-import: not)"
    )


def minutes_line(settings: Settings, lake: Lake) -> str | None:
    """Return one line on the progress of import and computation; None where no import has begun.

    Where the record of the import cannot be read, the line states that: nothing else depends on it.
    """
    if not settings.timescales.minutes.enabled:
        return None
    root = settings.storage.history_dir
    try:
        progress = read_progress(root)
    except HistoryError as error:
        return str(error)
    if progress is None:
        return None
    line = progress.sentence(runs=is_importing(root))
    if progress.state != DONE:
        return line
    first_ns = partition_window(progress.first_day)[0]
    labelled = [
        lake.written(spec.asset("labels"), first_ns, progress.at_ns)
        for spec in minutes_specs(settings.timescales.minutes, settings.timescales.reference_set)
    ]
    return f"{line}; days computed: {min(map(len, labelled))}"


def learning_line(lake: Lake, spec: TimescaleSpec) -> str:
    """Return how far a chain without an evaluation is from its first models."""
    labelled = lake.partitions(spec.asset("labels"))
    unit = "hours" if spec.partition_s == HOUR_S else "days"
    # The first one is seldom whole: a recording may begin at any time.
    needed = least_partitions(spec) + 1
    if len(labelled) < needed:
        return f"learning: {len(labelled)} of {needed} {unit}"
    newest, line = labelled[-1], f"learning: {len(labelled)} {unit}"
    if not lake.exists(spec.asset("splits"), newest, "json"):
        return f"{line}, not trained yet"
    try:
        plan = plans.read_plan(lake, spec, newest)
    except (ChainError, LakeError) as error:
        return f"{line}; {error}"
    if plan.trainable:
        return f"{line}; training as of {newest} has begun, no evaluation yet"
    return f"{line}; nothing trained as of {newest}: {plan.reason}"


def main() -> None:
    """Import the missing minutes of the last days; see the module."""
    from cryptovol_dagster.history.last_days import LastDays

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.nice(NICENESS)
    try:
        settings = load_settings().settings
        LastDays(
            History(settings.storage.history_dir),
            settings.history,
            settings.coinbase.products,
            partition_window(settings.dagster.minutes_start.isoformat())[0],
            tell=lambda line: print(line, flush=True),
        ).run()
    except CryptovolError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
