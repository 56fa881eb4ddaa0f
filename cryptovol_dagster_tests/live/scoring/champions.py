"""A lake with a champion of the real features of the seconds, trained on a synthetic market."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.learning.dataset import join_dataset, pose_problem
from cryptovol_dagster.core.learning.labels import forward_volatility
from cryptovol_dagster.core.learning.splits import split_times
from cryptovol_dagster.core.market.synthetic import synthetic_bars
from cryptovol_dagster.core.models import Model
from cryptovol_dagster.core.models.kinds import train_model
from cryptovol_dagster.core.promotion.decision import FIRST, PROMOTE, Champion, Decision
from cryptovol_dagster.core.samples import MODEL_SPEC
from cryptovol_dagster.core.specs import SplitSpec
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.live.parity import SPEC

_HOURS = 2
_SPLITS = SplitSpec(
    train_span_s=7_200, test_span_s=1_200, max_test_share=0.4, validation_share=0.2, embargo_s=300
)


@cache
def trained(name: str) -> Model:
    """A model of the features of `SPEC`; "xgboost" reads cross features, "har_logit" does not."""
    spec = replace(SPEC, splits=_SPLITS)
    bars = synthetic_bars(spec, _HOURS * 3_600)
    features = compute_features(bars, spec).to_frame()
    rows = join_dataset(features, forward_volatility(bars, spec).to_frame(), spec)
    problem = pose_problem(rows, split_times(int(rows.t_ns[0]), int(rows.t_ns[-1]) + spec.bar_ns, spec), spec)
    return train_model(name, problem, spec, MODEL_SPEC, feature_hash=feature_hash(spec))


def champion_of(model: Model, as_of: str) -> Champion:
    meta = model.meta
    return Champion(meta.name, as_of, meta.problem_hash, meta.feature_hash, "run", unproven=True)


def promote(lake: Lake, name: str, as_of: str, content: bytes | None = None) -> Champion:
    """Store a model and the decision that makes it champion; `content` replaces its file."""
    model = trained(name)
    champion = champion_of(model, as_of)
    decisions.keep_file(lake, SPEC, champion, model.to_bytes() if content is None else content)
    decisions.write_decision(lake, SPEC, Decision(as_of, PROMOTE, ("it is the first",), champion, kind=FIRST))
    return champion


def lake_in(folder: Path) -> Lake:
    return Lake(folder / "data" / "lake")
