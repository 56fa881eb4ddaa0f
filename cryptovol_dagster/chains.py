"""Build the specs of core from the settings: chains, models and the promotion rule."""

from __future__ import annotations

from datetime import date

from cryptovol_dagster.core.specs import (
    DAY_S,
    DEFAULT_REFERENCE_SET,
    GK,
    HOUR_S,
    MINUTES,
    RV,
    SECONDS,
    GateSpec,
    ModelSpec,
    SplitSpec,
    TimescaleSpec,
)
from ingestor.errors import USAGE, CryptovolError, did_you_mean
from ingestor.settings import Settings
from ingestor.settings.sections import MinutesSettings, ModelSettings, TimescaleSettings


class UnknownChain(CryptovolError):  # noqa: N818 - the name states the fact
    """There is no chain of that name; the message lists the existing ones."""

    exit_code = USAGE


def timescale_spec(
    settings: TimescaleSettings, name: str, reference_set: tuple[str, ...] = DEFAULT_REFERENCE_SET
) -> TimescaleSpec:
    """Return the spec of the seconds.

    Args:
        settings: the section ``settings.timescales.seconds``.
        name: the timescale's name, for example ``"seconds"``.
        reference_set: products whose means the cross features are.
    """
    fields = settings.model_dump(exclude={"splits", "retrain_every_hours"})
    return TimescaleSpec(
        name=name,
        grid=name,
        partition_s=HOUR_S,
        quotes=True,
        target=RV,
        retrain_every=settings.retrain_every_hours,
        retrain_phase=0,
        splits=SplitSpec(**settings.splits.model_dump()),
        reference_set=reference_set,
        **fields,
    )


def minutes_specs(
    settings: MinutesSettings, reference_set: tuple[str, ...] = DEFAULT_REFERENCE_SET
) -> tuple[TimescaleSpec, ...]:
    """Return the specs of the minutes, one per horizon; they share bars and features.

    Args:
        settings: the section ``settings.timescales.minutes``.
        reference_set: products whose means the cross features are.
    """
    others = {
        "enabled",
        "splits",
        "horizons",
        "models",
        "retrain_every_days",
        "retrain_anchor",
        "holdout_from",
    }
    fields = settings.model_dump(exclude=others)
    anchor_day = (settings.retrain_anchor - date(1970, 1, 1)).days
    return tuple(
        TimescaleSpec(
            name=f"{MINUTES}_h{horizon.bars}",
            grid=MINUTES,
            partition_s=DAY_S,
            quotes=False,
            horizon_bars=horizon.bars,
            target=GK if horizon.target == "garman_klass" else RV,
            splits=SplitSpec(**settings.splits.model_dump()),
            late_after_s=0.0,
            retrain_every=settings.retrain_every_days,
            retrain_phase=anchor_day % settings.retrain_every_days,
            reference_set=reference_set,
            **fields,
        )
        for horizon in settings.horizons
    )


def timescale_specs(settings: Settings) -> dict[str, TimescaleSpec]:
    """Return every chain of a configuration by name: ``seconds``, ``minutes_h5``, ``minutes_h15``."""
    timescales = settings.timescales
    found = [timescale_spec(timescales.seconds, SECONDS, timescales.reference_set)]
    if timescales.minutes.enabled:
        found += minutes_specs(timescales.minutes, timescales.reference_set)
    return {spec.name: spec for spec in found}


def spec_of(settings: Settings, name: str) -> TimescaleSpec:
    """Return the chain of a name.

    Raises:
        UnknownChain: the configuration has none of that name.
    """
    known = timescale_specs(settings)
    if name not in known:
        hint = did_you_mean(name, known)
        raise UnknownChain(f"{name} is not a chain of this configuration: {', '.join(known)}.{hint}")
    return known[name]


def models_of(settings: Settings, spec: TimescaleSpec) -> ModelSettings:
    """Return the model settings of a chain's timescale."""
    return settings.timescales.minutes.models if spec.grid == MINUTES else settings.models


def model_spec(settings: ModelSettings) -> ModelSpec:
    """Return the spec of the models.

    Args:
        settings: the section ``settings.models``, or that of the minutes.
    """
    # The champion's maximum age does not change a model, so it stays out of the hash.
    return ModelSpec(**settings.model_dump(exclude={"champion_max_age_days"}))


def gate_spec(settings: ModelSettings, spec: TimescaleSpec) -> GateSpec:
    """Return the spec of how a challenger is compared with the champion.

    Args:
        settings: the section of the timescale's models.
        spec: the chain.
    """
    usual = GateSpec()
    return GateSpec(
        # Where the first hold-out is a month, a challenger gets a second and a third analysis.
        measured_for_s=max(usual.measured_for_s, 3 * spec.splits.test_span_s),
        resamples=settings.bootstrap_resamples,
        seed=settings.seed,
        champion_max_age_s=settings.champion_max_age_days * DAY_S,
    )
