"""Gradient-boosted trees on all features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cryptovol_dagster.core.learning.dataset import Dataset
from cryptovol_dagster.core.models.base import Model, ModelError, varying_columns
from cryptovol_dagster.core.specs import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BOOSTER = "booster.ubj"
#: Fixed, because the order of floating-point sums (hence the trees) may depend on it.
_THREADS = 2
_EARLY_STOPPING_ROUNDS = 50


class BoostedTrees(Model):
    """XGBoost: shallow, strongly regularised trees, stopped early by the log loss of the validation rows.

    Classes are not re-weighted: that would not change the ranking and would bias the probabilities.

    Examples:
        >>> from cryptovol_dagster.core.samples import MODEL_SPEC, model
        >>> 1 <= model("xgboost").booster.num_boosted_rounds() <= MODEL_SPEC.xgboost_trees
        True
        >>> round(sum(model("xgboost").importances().values()), 6)
        1.0
    """

    name: ClassVar[str] = "xgboost"
    rank: ClassVar[int] = 60
    colour: ClassVar[str] = "#D55E00"
    catalog_kind: ClassVar[str] = "xgboost"
    importance_label: ClassVar[str] = "share of total gain"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "xgboost")
    accepts_nan: ClassVar[bool] = True
    _booster: Any = None

    @property
    def booster(self) -> Any:
        """The fitted `xgboost.Booster` with the trees up to early stopping; for logging and conversion."""
        return self._booster

    def importances(self) -> dict[str, float]:
        """Return each feature's share of the total gain, largest first; features never split on have 0."""
        gain = self._booster.get_score(importance_type="total_gain")
        total = sum(gain.values()) or 1.0
        shares = {name: gain.get(name, 0.0) / total for name in self.meta.features}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def _choose(self, train: Dataset, y: NDArray[np.bool_]) -> tuple[str, ...]:
        return varying_columns(self.name, train)

    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.bool_],
        X_validation: NDArray[np.float32],
        y_validation: NDArray[np.bool_],
        spec: ModelSpec,
    ) -> None:
        import xgboost

        if not len(X_validation):
            raise ModelError(f"model {self.name} has no validation rows to stop early on")
        names = list(self.meta.features)
        # Quantiles instead of values: one byte each instead of a copy, and the bins are needed anyway.
        train = xgboost.QuantileDMatrix(X, label=y, feature_names=names, nthread=_THREADS)
        validation = xgboost.QuantileDMatrix(
            X_validation, label=y_validation, feature_names=names, nthread=_THREADS, ref=train
        )
        booster = xgboost.train(
            {
                "objective": "binary:logistic",
                "eval_metric": "logloss",
                "tree_method": "hist",
                "max_depth": spec.xgboost_depth,
                "eta": spec.xgboost_learning_rate,
                "min_child_weight": spec.xgboost_min_child_weight,
                "subsample": 0.6,
                "colsample_bytree": 0.6,
                "lambda": 10.0,
                "seed": spec.seed,
                "nthread": _THREADS,
                "verbosity": 0,
            },
            train,
            num_boost_round=spec.xgboost_trees,
            evals=[(validation, "validation")],
            early_stopping_rounds=_EARLY_STOPPING_ROUNDS,
            verbose_eval=False,
        )
        self._booster = booster[: booster.best_iteration + 1]

    def _predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        return self._booster.inplace_predict(X, validate_features=False).astype(np.float64)

    @property
    def base_log_odds(self) -> float:
        """Log-odds expected of a training row: the bias of TreeSHAP, the same for every row."""
        unknown = np.full((1, len(self.meta.features)), np.nan, dtype=np.float32)
        return float(self._tree_shap(unknown)[0, -1])

    def _contributions(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        return self._tree_shap(X)[:, :-1].astype(np.float64)

    def _tree_shap(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return exact Shapley values of the margin (Lundberg and others 2020), and the bias as last column.

        Rows × (features + 1).
        """
        import xgboost

        rows = xgboost.DMatrix(X, feature_names=list(self.meta.features), nthread=_THREADS)
        return self._booster.predict(rows, pred_contribs=True)

    def _parts(self) -> dict[str, bytes]:
        return {_BOOSTER: bytes(self._booster.save_raw("ubj"))}

    def _restore(self, parts: dict[str, bytes]) -> None:
        import xgboost

        content = parts[_BOOSTER]
        try:
            self._booster = xgboost.Booster({"nthread": _THREADS}, model_file=bytearray(content))
        except xgboost.core.XGBoostError as error:
            raise ModelError(f"the file of model {self.name} contains no XGBoost booster") from error
