"""Settings → core specs: the one place where configuration turns into what a computation is asked to do."""

from __future__ import annotations

from cryptovol_dagster.core.specs import ModelSpec, SplitSpec, TimescaleSpec
from ingestor.settings.model import ModelSettings, TimescaleSettings


def timescale_spec(settings: TimescaleSettings, name: str) -> TimescaleSpec:
    """The spec of one timescale.

    Args:
        settings: the section, for example ``settings.timescales.seconds``.
        name: the timescale's name, for example ``"seconds"``.
    """
    fields = settings.model_dump(exclude={"splits"})
    return TimescaleSpec(name=name, splits=SplitSpec(**settings.splits.model_dump()), **fields)


def model_spec(settings: ModelSettings) -> ModelSpec:
    """The spec of every model.

    Args:
        settings: the section ``settings.models``.
    """
    # How often a backfill trains changes which hours have models, not what a model is.
    return ModelSpec(**settings.model_dump(exclude={"backfill_retrain_every_hours"}))
