"""Hours and days: where they begin, and where those of a market that has ended end."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from cryptovol_dagster.defs import partitions
from cryptovol_dagster_tests.synthetic import small_settings
from ingestor.settings import Settings


def settings_up_to(end: str | None) -> Settings:
    settings = small_settings(Path(), first_hour="2025-11-30-22:00")
    dagster = settings.dagster.model_copy(
        update={"partitions_end": end, "minutes_start": date(2025, 11, 30)},
    )
    return settings.model_copy(update={"dagster": dagster})


@pytest.mark.parametrize(
    ("end", "days"),
    [("2025-12-01-00:00", ["2025-11-30"]), ("2025-12-01-01:00", ["2025-11-30", "2025-12-01"])],
)
def test_a_market_that_has_ended_has_no_later_partition(end: str, days: list[str]) -> None:
    settings = settings_up_to(end)
    hours = ["2025-11-30-22:00", "2025-11-30-23:00", "2025-12-01-00:00"]
    assert partitions.hours(settings).get_partition_keys() == hours[: len(days) + 1]
    assert partitions.days(settings).get_partition_keys() == days


def test_a_market_that_goes_on_has_the_hour_and_the_day_that_run() -> None:
    settings, now = settings_up_to(None), datetime.now(UTC)
    for found in (partitions.hours(settings), partitions.days(settings)):
        window = found.get_last_partition_window()
        assert window is not None
        assert window.end > now
