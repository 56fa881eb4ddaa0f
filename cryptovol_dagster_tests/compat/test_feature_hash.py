"""Hashes that name stored features, labels and models stay the same when code moves.

The build of commit e96414f computed these values. They stand in the metadata of every Parquet file of the
lake, in each model file, in MLflow and in each decision. Another value means that features (labels, models)
have a new meaning: every hour is recomputed, and no champion can score any more. Where that is the purpose
of a change, raise the version beside the formulas and put the new value here.
"""

from __future__ import annotations

import pytest

from cryptovol_dagster.chains import gate_spec, model_spec, models_of, timescale_specs
from cryptovol_dagster.core.features.catalogue import feature_hash
from cryptovol_dagster.core.learning.labels import label_hash
from ingestor.settings import Settings

#: By chain, of the default settings: the `cryptovol.version` of features and of labels in Parquet, and the
#: hashes of `TimescaleSpec` (assets' code versions), `ModelSpec` (MLflow's `model_spec`) and `GateSpec`.
EXPECTED = {
    "seconds": ("39d1f5be12f8", "7a6a68943046", "211d0a13ca78", "fc31e2236914", "e97d4717221b"),
    "minutes_h5": ("d95d4c3c52d8", "effd4966c4fe", "4134073979b4", "63f9f03be33f", "c832bb5bb3da"),
    "minutes_h15": ("d95d4c3c52d8", "0a838dc0101f", "ba362b547bc2", "63f9f03be33f", "c832bb5bb3da"),
}


def test_every_chain_is_named_here() -> None:
    assert timescale_specs(Settings()).keys() == EXPECTED.keys()


@pytest.mark.parametrize("chain", EXPECTED)
def test_hashes_of_features_labels_and_specs_are_those_of_before(chain: str) -> None:
    settings = Settings()
    spec = timescale_specs(settings)[chain]
    models = models_of(settings, spec)
    found = (
        feature_hash(spec),
        label_hash(spec),
        spec.hash(),
        model_spec(models).hash(),
        gate_spec(models, spec).hash(),
    )
    assert found == EXPECTED[chain]
