"""Duration of a prediction: by back end and number of rows, and from a tick to a probability.

Belongs here: the back ends of a model, the check that they agree, and the timing. The display is the
verb's.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cryptovol_dagster.core.features.catalogue import lookback_bars
from cryptovol_dagster.core.features.live import LiveFeatures
from cryptovol_dagster.core.market.synthetic import START_NS, synthetic_ticks
from cryptovol_dagster.core.models.boosting import BoostedTrees
from cryptovol_dagster.core.models.logistic import LogisticModel
from cryptovol_dagster.core.models.onnx import OnnxScorer, compare, to_onnx
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.inference.scorer import FeatureRows, InferError, Scorer, inputs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.models import Model

BATCHES = (1, 16, 256, 1_000)
#: A call of the model for one row, 99 times in a hundred.
TARGET_MS = 0.1
ONNX, MODEL = "onnxruntime", "cryptovol model"
_SECONDS, _WARM_UP, _LEAST_CALLS, _MOST_CALLS = 1.0, 50, 20, 5_000
#: Bars timed one by one; enough for a meaningful 99 % quantile.
_LIVE_BARS = 200
_LIBRARIES = ("numpy", "onnxruntime", "scikit-learn", "xgboost")

Predict = Callable[["NDArray[np.float32]"], "NDArray[Any]"]


def measure(rows: FeatureRows, scorer: Scorer, spec: TimescaleSpec) -> dict[str, Any]:
    """Time calls of a model on rows of features, and the path of one bar from ticks to probabilities.

    Before any timing, all back ends must agree on every row that may be scored.

    Raises:
        InferError: no row may be scored, or the rows are of another feature set.
        ParityError: two back ends differ.
        ModelError: a column is missing or unknown.
    """
    model = scorer.model
    valid = inputs_of(rows, scorer).loc[rows.frame["valid"].to_numpy(dtype=bool)]
    if valid.empty:
        raise InferError(f"{rows.source}: no row may be scored, so there is nothing to measure")
    backends = backends_of(model)
    parity = {
        name: compare(model, name, predict, valid, scorer.threshold)._asdict()
        for name, predict in backends.items()
    }
    calls = []
    for batch in BATCHES:
        repeated = [valid] * -(-batch // len(valid))
        frame = pd.concat(repeated, ignore_index=True).head(batch)
        matrix = np.ascontiguousarray(model.matrix(frame))
        asked: dict[str, Callable[[], Any]] = {
            name: lambda predict=predict, matrix=matrix: predict(matrix) for name, predict in backends.items()
        }
        asked[MODEL] = lambda frame=frame: model.predict_proba(frame)
        calls += [{"backend": name, "rows": batch, **_quantiles(_time(call))} for name, call in asked.items()]
    one_row = next(call for call in calls if call["backend"] == ONNX and call["rows"] == 1)
    return {
        "machine": machine(),
        "valid_rows": len(valid),
        "parity": parity,
        "calls": calls,
        "live": _live(model, backends[ONNX], spec),
        "target_ms": TARGET_MS,
        "within_target": one_row["p99_ms"] <= TARGET_MS,
    }


def backends_of(model: Model) -> dict[str, Predict]:
    """Return the back ends of a model for a matrix, onnxruntime first.

    Raises:
        ModelError: the model has no graph.
    """
    found: dict[str, Predict] = {ONNX: OnnxScorer(to_onnx(model)).predict}
    if isinstance(model, BoostedTrees):
        booster = model.booster
        found["xgboost inplace_predict"] = lambda X: booster.inplace_predict(X, validate_features=False)
    elif isinstance(model, LogisticModel):
        folded, pipeline = model.folded(), model.pipeline
        found["numpy, folded logit"] = folded.predict
        found["scikit-learn pipeline"] = lambda X: pipeline.predict_proba(
            np.where(np.isnan(X), folded.means, X)
        )[:, 1]
    return found


def machine() -> dict[str, str]:
    """Return the processor and the versions of the measurement."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{library: version(library) for library in _LIBRARIES},
    }


def _live(model: Model, predict: Predict, spec: TimescaleSpec) -> dict[str, Any] | None:
    """Time a live second: its ticks, bars, features, the matrix, the probabilities.

    The market is synthetic; the step is that of `cryptovol featurize`. None where live rows lack a required
    feature of the model, and for bars of candles, which have no live step.
    """
    if not spec.quotes:
        return None
    known_bars = lookback_bars(spec)
    ticks, _ = synthetic_ticks(spec, known_bars + _LIVE_BARS)
    ticks = ticks.take(np.argsort(ticks.event_time_ns, kind="stable"))
    live = LiveFeatures(spec, lateness_ns=0)
    at_ns = START_NS + known_bars * spec.bar_ns
    first = int(np.searchsorted(ticks.event_time_ns, at_ns))
    live.add(ticks.take(slice(0, first)))
    names = live.close(at_ns, at_ns).names
    place = {name: column for column, name in enumerate(names)}
    lacking = [name for name in model.meta.features if name not in place]
    if set(lacking) - set(model.meta.optional) and not model.accepts_nan:
        return None
    wanted = np.array([place.get(name, len(names)) for name in model.meta.features])
    seconds = []
    rows = 0
    for _ in range(_LIVE_BARS):
        until_ns = at_ns + spec.bar_ns
        last = int(np.searchsorted(ticks.event_time_ns, until_ns))
        given = ticks.take(slice(first, last))
        gc.disable()
        began = time.perf_counter()
        live.add(given)
        rows_out = live.close(until_ns, until_ns)
        padded = np.pad(rows_out.values, ((0, 0), (0, 1)), constant_values=np.nan)
        predict(padded[:, wanted].astype(np.float32))
        seconds.append(time.perf_counter() - began)
        gc.enable()
        rows, first, at_ns = rows + len(rows_out), last, until_ns
    return {
        "rows_a_bar": rows / _LIVE_BARS,
        "bar_s": spec.bar_interval_s,
        "lacking": len(lacking),
        **_quantiles(seconds),
    }


def _time(call: Callable[[], Any]) -> list[float]:
    """Time calls one by one, warmed up and without the garbage collector."""
    for _ in range(_WARM_UP):
        call()
    seconds: list[float] = []
    gc.disable()
    try:
        began = time.perf_counter()
        while len(seconds) < _MOST_CALLS:
            start = time.perf_counter()
            call()
            end = time.perf_counter()
            seconds.append(end - start)
            if len(seconds) >= _LEAST_CALLS and end - began > _SECONDS:
                break
    finally:
        gc.enable()
    return seconds


def _quantiles(seconds: list[float]) -> dict[str, Any]:
    p50, p90, p99 = (float(value) * 1e3 for value in np.quantile(seconds, [0.5, 0.9, 0.99]))
    return {"calls": len(seconds), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
