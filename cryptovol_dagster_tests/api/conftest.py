"""The small pipeline as a market that is opened by its folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from cryptovol_dagster import api
from cryptovol_dagster_tests.pipeline import Pipeline


@pytest.fixture(scope="session")
def opened(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> api.Market[pd.DataFrame]:
    """Four hours, the second with a gap; opened by a configuration file."""
    config = tmp_path_factory.mktemp("opened") / "config.yaml"
    config.write_text(yaml.safe_dump(pipeline.settings.model_dump(mode="json", exclude={"kafka"})))
    return api.open(config)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A data folder that holds nothing."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder
