"""A cryptovol model file as an MLflow model: ``mlflow.pyfunc`` loads any kind by run, version or alias.

The flavour is a *loader module*: MLflow keeps the zip as it is and calls `_load_pyfunc` of `LOADER_MODULE`,
so nothing is pickled and one path serves all kinds. Loading requires cryptovol.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from cryptovol_dagster.core.models import Model

#: Name of the model's folder among a run's artifacts, and of the zip in it.
FOLDER, FILE = "model", "model.zip"
#: Stored inside every registered model. It is a name for good: models of any build load in any other.
LOADER_MODULE = "cryptovol_dagster.resources.mlflow_model"


class SpikeModel:
    """The model that `mlflow.pyfunc` calls: a frame of features in, P(spike) out, one a row."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> NDArray[np.float64]:
        """Return P(spike) of each row.

        Raises:
            ModelError: a column is missing or unknown, or one the model reads contains NaN or infinity.
        """
        return self._model.predict_proba(model_input)


def _load_pyfunc(path: str) -> SpikeModel:
    """Read the zip; MLflow calls this, by name."""
    from cryptovol_dagster.core.models import load_model

    return SpikeModel(load_model(Path(path).read_bytes()))


def write_mlflow_model(content: bytes, folder: Path) -> None:
    """Write a model file as an MLflow model into `folder`, which must not exist.

    Requirements are named here: inferring them takes MLflow ten seconds.

    Raises:
        ModelError: the bytes are not a cryptovol model file.
    """
    import tempfile
    import warnings
    from importlib.metadata import version

    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, Schema

    from cryptovol_dagster.core.models.base import read_parts

    meta, _ = read_parts(content)
    signature = ModelSignature(
        inputs=Schema([ColSpec("double", name) for name in meta.inputs]),
        outputs=Schema([ColSpec("double")]),
    )
    with tempfile.TemporaryDirectory() as beside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        file = Path(beside) / FILE
        file.write_bytes(content)
        save_model(
            str(folder),
            loader_module=LOADER_MODULE,
            data_path=str(file),
            signature=signature,
            pip_requirements=[
                f"cryptovol=={version('cryptovol')}",
                *(f"{library}=={found}" for library, found in meta.versions.items()),
            ],
            metadata={
                "model": meta.name,
                "timescale": meta.timescale,
                "horizon_s": meta.horizon_s,
                "feature_hash": meta.feature_hash,
                **({"reference_set": list(meta.cross_set)} if meta.cross_set else {}),
                "problem_hash": meta.problem_hash,
            },
        )
