"""Report the days of the history that an import changed to Dagster, as runless materializations."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg
import pandas as pd

from cryptovol_dagster.core.times import DAY_NS
from cryptovol_dagster.history.store import ASSET, History, day_version
from cryptovol_dagster.machine.instance import ensure_dagster_home, open_instance
from ingestor.settings import Settings

_DATA_VERSION = "dagster/data_version"


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
            start_ns = pd.Timestamp(day, tz="UTC").value
            candles = history.read_products(products, start_ns, start_ns + DAY_NS)
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    asset_key=dg.AssetKey.from_user_string(ASSET),
                    partition=day,
                    metadata={
                        "dagster/partition_row_count": len(candles),
                        **{
                            f"candles {product}": int((candles["product"] == product).sum())
                            for product in products
                        },
                    },
                    tags={_DATA_VERSION: day_version(candles)},
                )
            )
