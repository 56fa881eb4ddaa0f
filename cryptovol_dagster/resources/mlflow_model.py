"""The loader that every registered model names: MLflow stores this path, so it stays where it is."""

from cryptovol_dagster.tracking.flavour import _load_pyfunc as _load_pyfunc
