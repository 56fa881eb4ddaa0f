"""The models: one interface, five ways to say how likely the next H bars are to be a spike.

`train_model(name, problem, ...)` fits one, `model.to_bytes()` stores it without pickle, `load_model(data)`
reads it.
"""

from cryptovol_dagster.core.models.base import Model, ModelError, ModelMeta
from cryptovol_dagster.core.models.kinds import MODELS, load_model, train_model

__all__ = ["MODELS", "Model", "ModelError", "ModelMeta", "load_model", "train_model"]
