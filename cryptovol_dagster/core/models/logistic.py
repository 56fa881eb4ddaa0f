"""Base class of the linear models: standardisation, then a logistic regression, stored with skops."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from cryptovol_dagster.core.models.base import Model, ModelError
from cryptovol_dagster.core.specs import ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIPELINE = "pipeline.skops"
_PIECE_ROWS = 100_000


class FoldedLogit(NamedTuple):
    """A standardised logistic regression as one sum: ``ln(p/(1−p)) = intercept + Σ w_k·(x_k − m_k)``.

    An unknown value adds nothing to the sum.

    Attributes:
        means: m, of the training rows, shape (n_features,).
        weights: w, coefficient over deviation.
        intercept: log-odds of the mean row.

    Examples:
        >>> logit = FoldedLogit(means=np.array([1.0]), weights=np.array([2.0]), intercept=-1.0)
        >>> logit.predict(np.array([[1.0], [1.5]], np.float32)).round(4)
        array([0.2689, 0.5   ])
    """

    means: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercept: float

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return one probability per row."""
        return 1 / (1 + np.exp(-(self.away(X) @ self.weights + self.intercept)))

    def away(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``x_k − m_k`` of each row; 0 where x is unknown."""
        away = X - self.means
        np.nan_to_num(away, copy=False)
        return away


class LogisticModel(Model):
    """Logistic regression (L2, no class weights) on standardised columns; kinds differ in the columns.

    An optional feature without a value counts as the training mean of its column: 0 once standardised.
    """

    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn", "skops")
    importance_label: ClassVar[str] = "coefficient of the standardised feature"
    _pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        """The fitted scikit-learn pipeline, scaler and regression; it does not accept unknown values."""
        return self._pipeline

    def importances(self) -> dict[str, float]:
        """Return the coefficient of each standardised feature, largest magnitude first."""
        coefficients = self._pipeline[-1].coef_[0]
        order = np.argsort(-np.abs(coefficients), kind="stable")
        return {self.meta.features[k]: float(coefficients[k]) for k in order}

    def folded(self) -> FoldedLogit:
        """Return scaler and regression as one weighted sum, for back ends without scikit-learn.

        Raises:
            ModelError: the model has not been fitted.

        Examples:
            >>> from cryptovol_dagster.core.samples import model
            >>> model("har_logit").folded().weights.shape
            (2,)
        """
        if self._pipeline is None:
            raise ModelError(f"model {self.name} has not been fitted")
        scaler, logistic = self._pipeline
        weights = logistic.coef_[0].astype(np.float64) / scaler.scale_
        return FoldedLogit(np.asarray(scaler.mean_), weights, float(logistic.intercept_[0]))

    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.bool_],
        X_validation: NDArray[np.float32],
        y_validation: NDArray[np.bool_],
        spec: ModelSpec,
    ) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        means = np.array([np.nanmean(column, dtype=np.float64) for column in X.T])
        # In pieces: all at once would copy X in float64.
        for first in range(0, len(X), _PIECE_ROWS):
            scaler.partial_fit(_filled(X[first : first + _PIECE_ROWS], means))
        standardised = np.empty(X.shape, dtype=X.dtype)  # by rows, as the solver needs it: no second copy
        np.subtract(X, np.asarray(scaler.mean_, X.dtype), out=standardised)
        standardised /= np.asarray(scaler.scale_, X.dtype)
        np.nan_to_num(standardised, copy=False)
        logistic = LogisticRegression(C=spec.logreg_c, max_iter=1_000, random_state=spec.seed)
        self._pipeline = make_pipeline(scaler, logistic.fit(standardised, y))

    def _predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        # Sums in float32 would depend on the number of rows. The scaler's mean is that of
        # the filled columns, hence of the values known in training.
        return self._pipeline.predict_proba(_filled(X.astype(np.float64), self._pipeline[0].mean_))[:, 1]

    @property
    def base_log_odds(self) -> float:
        """Log-odds of the mean row of training."""
        return self.folded().intercept

    def _contributions(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        logit = self.folded()
        return logit.away(X) * logit.weights

    def _parts(self) -> dict[str, bytes]:
        import skops.io

        return {_PIPELINE: skops.io.dumps(self._pipeline)}

    def _restore(self, parts: dict[str, bytes]) -> None:
        import skops.io

        content = parts[_PIPELINE]
        try:
            # skops loads only types that it knows to be harmless; this pipeline needs no others.
            untrusted = skops.io.get_untrusted_types(data=content)
            if not untrusted:
                self._pipeline = skops.io.loads(content)
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
            raise ModelError(
                f"the file of model {self.name} contains no readable pipeline: {error}"
            ) from error
        if untrusted:
            raise ModelError(
                f"the file of model {self.name} contains types that are not trusted: {', '.join(untrusted)}"
            )


def _filled(X: NDArray[Any], means: NDArray[np.float64]) -> NDArray[Any]:
    """Return X with the means in place of NaN; X itself, not a copy, where it has none."""
    unknown = np.isnan(X)
    return np.where(unknown, means, X) if unknown.any() else X
