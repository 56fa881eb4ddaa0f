"""Words for features: every declared feature has some, and they name its windows in time."""

from __future__ import annotations

import pytest

from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.features.catalogue import feature_list
from cryptovol_dagster.core.features.meanings import meaning
from ingestor.settings.sections import Settings


@pytest.mark.parametrize("chain", timescale_specs(Settings()))
def test_every_feature_has_a_meaning_in_words(chain: str) -> None:
    spec = timescale_specs(Settings())[chain]
    without = [
        feature.name
        for feature in feature_list(spec)
        if feature.name in meaning(feature.name, spec.bar_interval_s)
    ]
    assert without == []


@pytest.mark.parametrize(
    ("name", "bar_s", "words"),
    [
        ("ln_rv_90", 1, "volatility of the last 90 s"),
        ("ln_rv_90", 60, "volatility of the last 90 min"),
        ("ln_rv_120", 60, "volatility of the last 2 h"),
        ("volume_ratio_5_1440", 60, "traded volume of the last 5 min compared with the last 24 h"),
        ("cross_abs_ret_5", 1, "other products: size of the price move of the last 5 s"),
        ("rv_ratio_15", 1, "rv_ratio_15"),
        ("ret", 1, "ret"),
    ],
)
def test_windows_are_given_in_time_and_other_names_as_they_are(name: str, bar_s: int, words: str) -> None:
    assert meaning(name, bar_s) == words
