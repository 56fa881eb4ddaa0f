"""Rows of features to score."""

from __future__ import annotations

import pandas as pd

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster_tests.pipeline import Pipeline
from cryptovol_dagster_tests.synthetic import PRODUCTS

KEYS = ["bar_start", "product", "valid", "reason"]


def newest_features(pipeline: Pipeline) -> pd.DataFrame:
    """The newest hour's features; the last row of one product must not be scored."""
    frame = pipeline.lake.read_table("seconds/features", *hour_window(pipeline.hours[-1])).to_pandas()
    frame = frame.astype({"product": str}).reset_index(drop=True)
    last = frame.index[frame["product"] == PRODUCTS[1]][-1]
    frame.loc[last, "valid"] = False
    frame.loc[last, "reason"] = Reason.IN_GAP
    return frame
