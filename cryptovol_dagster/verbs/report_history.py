"""Report the days of the history that an import changed to Dagster, as runless materializations."""

from __future__ import annotations

from collections.abc import Sequence

from cryptovol_dagster.defs.assets.candles import imported_day
from cryptovol_dagster.history.store import History
from cryptovol_dagster.machine.instance import ensure_dagster_home, open_instance
from ingestor.settings import Settings


def report_days(settings: Settings, history: History, days: Sequence[str]) -> None:
    """Report days of imported candles as materializations of the external asset `minutes/history`.

    Args:
        settings: the configuration; its Dagster instance is used.
        history: what is stored.
        days: the days changed (``2024-01-31``).

    Raises:
        InstanceError: the Dagster home cannot be used.
    """
    products = history.products()
    with open_instance(ensure_dagster_home(settings)) as instance:
        for day in days:
            instance.report_runless_asset_event(imported_day(history, products, day))
