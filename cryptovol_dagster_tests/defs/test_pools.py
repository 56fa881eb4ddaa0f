"""Which runs may overlap: an hour and a training may, two of either may not."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from cryptovol_dagster.chains import minutes_specs, timescale_spec
from cryptovol_dagster.core.specs import SECONDS, market_assets
from cryptovol_dagster.defs.automation.jobs import asset_keys
from cryptovol_dagster.defs.build import build_defs
from cryptovol_dagster.defs.pools import MARKET, TRAINING
from cryptovol_dagster.machine.instance import DAGSTER_YAML
from ingestor.settings import Settings


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs(Settings())


def test_every_asset_is_in_the_pool_of_what_it_is(defs: dg.Definitions) -> None:
    market = {*_market_keys(), *asset_keys(market_assets(minutes_specs(Settings().timescales.minutes)))}
    pools = {}
    for assets in defs.resolve_asset_graph().assets_defs:
        if assets.is_executable and assets.keys:
            (key,) = assets.keys
            pools[key] = assets.op.pool
    assert len(pools) > len(market)
    assert pools == {key: MARKET if key in market else TRAINING for key in pools}


def test_two_hours_or_two_trainings_wait_for_each_other(tmp_path: Path, defs: dg.Definitions) -> None:
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        config = instance.get_concurrency_config()
        assert config.run_queue_config is not None
        assert config.run_queue_config.max_concurrent_runs == 2
        pool = config.pool_config
        assert (pool.pool_granularity, pool.default_pool_limit) == (type(pool.pool_granularity)("run"), 1)
        taken = {}
        for name in ("retrain", "backfill"):
            run = instance.create_run_for_job(defs.resolve_job_def(name))
            assert run.run_op_concurrency is not None
            taken[name] = run.run_op_concurrency.all_pools
        market_run = instance.create_run_for_job(
            defs.resolve_job_def("hourly_pipeline"),
            asset_selection=frozenset(_market_keys()),
        )
        assert market_run.run_op_concurrency is not None
        assert market_run.run_op_concurrency.all_pools == {MARKET}
        assert taken == {"retrain": {TRAINING}, "backfill": {MARKET, TRAINING}}


def _market_keys() -> list[dg.AssetKey]:
    return asset_keys(market_assets([timescale_spec(Settings().timescales.seconds, SECONDS)]))
