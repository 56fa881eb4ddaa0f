"""A small synthetic market of whole bars, for what needs every column of them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from cryptovol_dagster.core.market.bars import BarGrid
from cryptovol_dagster.core.market.synthetic import synthetic_bars
from cryptovol_dagster.core.specs import SplitSpec
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, SPEC

#: Short windows and a short horizon: an audit in seconds.
LEAK_SPEC = replace(
    SPEC,
    windows_bars=(5, 15, 60),
    ewma_half_lives_bars=(5, 20),
    horizon_bars=15,
    splits=SplitSpec(86_400, 86_400, max_test_share=0.3, validation_share=0.2, embargo_s=60),
)
SMALL = replace(MODEL_SPEC, xgboost_trees=20, bootstrap_resamples=10)


@lru_cache(maxsize=4)
def made_up(seed: int, n_bars: int = 3_000) -> BarGrid:
    """Bars of a synthetic market, each seed's computed once."""
    return synthetic_bars(LEAK_SPEC, n_bars, seed=seed)
