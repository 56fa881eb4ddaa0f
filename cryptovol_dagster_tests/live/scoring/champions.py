"""A lake with a champion of the real features of the seconds, trained on a synthetic market."""

from __future__ import annotations

from cryptovol_dagster.core.models import Model
from cryptovol_dagster.core.promotion.decision import FIRST, PROMOTE, Champion, Decision
from cryptovol_dagster.core.samples import model_of
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster_tests.live.parity import SPEC


def trained(name: str) -> Model:
    """A model of the features of `SPEC`; "xgboost" reads cross features, "har_logit" does not."""
    return model_of(SPEC, name)


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
