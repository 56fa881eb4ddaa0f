"""Models: estimators of the probability that the next H bars are a spike, with one interface.

`train_model(name, problem, ...)` fits a model, `model.to_bytes()` stores it without pickle, and
`load_model(data)` reads it.
"""

from cryptovol_dagster.core.models.base import Model, ModelError, ModelMeta
from cryptovol_dagster.core.models.kinds import MODELS, load_model, train_model

__all__ = ["MODELS", "Model", "ModelError", "ModelMeta", "load_model", "train_model"]
