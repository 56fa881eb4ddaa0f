"""One small pipeline, materialized once in a range run, for every test that only looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.synthetic import FIRST_HOUR, hours_from, small_settings, write_market
from ingestor.settings import Settings

if TYPE_CHECKING:
    from cryptovol_dagster.verbs.runs import RunSummary

#: The seconds' assets from the feed to labels and drift scores.
MARKET = (
    "gap_ledger",
    "ticks",
    "seconds/bars",
    "seconds/features",
    "seconds/labels",
    "seconds/drift_scores",
)


@dataclass(frozen=True)
class Pipeline:
    """Settings, hours and the summary of the run over all of them."""

    settings: Settings
    hours: list[str]
    summary: RunSummary

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.storage.lake_dir)


@pytest.fixture(scope="session")
def own_dagster_home() -> Iterator[None]:
    """Keep the Dagster instance inside each pipeline's own data folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        patch.setenv("DO_NOT_TRACK", "1")
        yield


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, own_dagster_home: None) -> Pipeline:
    """Four hours, the second with a gap, from raw to model card in one run."""
    # Seconds of Dagster's import, for the tests that need none of it.
    from cryptovol_dagster.verbs import runs

    settings = small_settings(tmp_path_factory.mktemp("pipeline"))
    hours = hours_from(FIRST_HOUR, 4)
    write_market(settings.storage.raw_dir, hours, gap_in=hours[1])
    summary = runs.materialize_range(settings, hours[0], hours[-1], runs.chain_selection(settings))
    return Pipeline(settings, hours, summary)


@pytest.fixture
def market(tmp_path: Path, own_dagster_home: None) -> Settings:
    """Settings of a folder of its own with two hours of raw storage, nothing materialized."""
    settings = small_settings(tmp_path)
    write_market(settings.storage.raw_dir, hours_from(FIRST_HOUR, 2))
    return settings
