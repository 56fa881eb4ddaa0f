"""Labels: the volatility of the next H bars, and whether it is a spike.

Nothing here depends on features or models. A row's key is the start `s` of its bar. Its decision time is the
bar's end `t = s + bar`, and its label covers the bars after it, `(t, t + H]`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cryptovol_dagster.core.learning.errors import DegenerateThreshold, LearningError
from cryptovol_dagster.core.market.bars import BarGrid, frame_keys
from cryptovol_dagster.core.specs import GK, RV, TimescaleSpec
from cryptovol_dagster.core.times import iso_utc

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Increased when the label changes its meaning without changing its parameters.
LABELS_VERSION = 2
#: Why a row has no label (the value of `LabelGrid.reason`).
REASONS = {0: "ok", 1: "break", 2: "stale", 3: "end_of_data"}
_OK, _BREAK, _STALE, _END = range(4)

#: Returns are whole nano-units of log price, so a volatility below this cannot be distinguished from zero.
SIGMA_FLOOR = 1e-9


@dataclass(frozen=True)
class LabelGrid:
    """Forward volatility on the bars' grid; every array has shape (products, rows).

    Attributes:
        products: names of the rows of the arrays.
        start_ns: start of the first bar labelled.
        bar_ns: length of a bar.
        sigma: volatility of the next H bars per bar: root mean square of their log returns, or root mean of
            their Garman–Klass terms; NaN = no label.
        trailing_sigma: the same over the H bars up to and including this one; NaN where they are broken.
        reason: int8 code of `REASONS`; 0 exactly where `sigma` is a number.
    """

    products: tuple[str, ...]
    start_ns: int
    bar_ns: int
    sigma: NDArray[np.float64]
    trailing_sigma: NDArray[np.float64]
    reason: NDArray[np.int8]

    def to_frame(self) -> pd.DataFrame:
        """Return the long form, product by product: keys, `sigma`, `trailing_sigma`, `reason`."""
        starts = self.start_ns + self.bar_ns * np.arange(self.sigma.shape[1], dtype=np.int64)
        return pd.DataFrame(
            {
                **frame_keys(self.products, starts),
                "sigma": self.sigma.ravel(),
                "trailing_sigma": self.trailing_sigma.ravel(),
                "reason": self.reason.ravel(),
            }
        )


def label_hash(spec: TimescaleSpec) -> str:
    """Return a short stable hash of a label's definition: bar, horizon, and limits of usable bars."""
    meaning = {
        "version": LABELS_VERSION,
        "bar_interval_s": spec.bar_interval_s,
        "gap_after_s": spec.gap_after_s,
        "horizon_bars": spec.horizon_bars,
        "label_max_age_s": spec.label_max_age_s,
        **({} if spec.target == RV else {"target": spec.target}),
    }
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:12]


def rows_labelled_by(start_ns: int, end_ns: int, spec: TimescaleSpec) -> tuple[int, int]:
    """Return the row range (bar starts, half-open) whose last labelled bar starts in ``[start_ns, end_ns)``.

    A partition of labels contains these rows: they end H before the partition does, so no row waits for the
    next partition.
    """
    return start_ns - spec.horizon_ns, end_ns - spec.horizon_ns


def forward_volatility(
    bars: BarGrid, spec: TimescaleSpec, *, from_ns: int | None = None, to_ns: int | None = None
) -> LabelGrid:
    """Compute σ over the H bars after each bar: ``σ_s = sqrt((1/H) Σ_{k=1..H} r²_{s+k})``.

    Where the target is Garman–Klass (1980), their term replaces r²; it uses a bar's range, so fewer bars
    suffice. The sums are exact int64 sums of squared nano-returns (bars bound a return and a range
    to 5 %), so they do not depend on where the grid begins. There is no label where any of the H bars is a
    break (new segment, no usable return, in a gap, no quote), carries a quote older than
    `spec.label_max_age_s`, or lies past the end of the grid.

    Args:
        bars: the grid; it must reach H bars past the last row to label.
        spec: horizon and the oldest quote allowed.
        from_ns: first bar start to label; default: the grid's first.
        to_ns: end (exclusive) of the bar starts to label; default: the grid's end.

    Returns:
        One label per (product, bar) with ``from_ns <= bar_start < to_ns``.

    Raises:
        ValueError: the requested range is outside the grid.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC, bars
        >>> labels = forward_volatility(bars(), SPEC)
        >>> [f"{sigma:.2e}" for sigma in labels.sigma[0, :3]]
        ['2.54e-05', '2.46e-05', '1.91e-05']
        >>> REASONS[int(labels.reason[0, -1])]
        'end_of_data'
    """
    horizon = spec.horizon_bars
    from_ns = bars.start_ns if from_ns is None else from_ns
    to_ns = bars.end_ns if to_ns is None else to_ns
    if not bars.start_ns <= from_ns <= to_ns <= bars.end_ns:
        raise ValueError(
            f"labels requested for [{iso_utc(from_ns)}, {iso_utc(to_ns)}), but the bars cover only "
            f"[{iso_utc(bars.start_ns)}, {iso_utc(bars.end_ns)})"
        )
    first = -((bars.start_ns - from_ns) // bars.bar_ns)
    last = -((bars.start_ns - to_ns) // bars.bar_ns)

    broken = bars.new_segment | ~bars.ret_ok | bars.in_gap | ~bars.has_quote
    stale = bars.age_s > spec.label_max_age_s
    squares = np.where(broken, 0, bars.gk_atto if spec.target == GK else bars.ret_nano**2)

    ahead, behind = _window_sums(squares, horizon, first, last)
    broken_ahead, broken_behind = _window_sums(broken.astype(np.int64), horizon, first, last)
    stale_ahead, stale_behind = _window_sums(stale.astype(np.int64), horizon, first, last)

    rows = np.arange(first, last)
    reason = np.full(ahead.shape, _OK, dtype=np.int8)
    reason[stale_ahead > 0] = _STALE
    reason[broken_ahead > 0] = _BREAK
    reason[:, rows + horizon >= bars.n_bars] = _END
    trailing_ok = (broken_behind == 0) & (stale_behind == 0) & (rows + 1 >= horizon)
    return LabelGrid(
        products=bars.products,
        start_ns=bars.start_ns + first * bars.bar_ns,
        bar_ns=bars.bar_ns,
        sigma=np.where(reason == _OK, _root_mean(ahead, horizon), np.nan),
        trailing_sigma=np.where(trailing_ok, _root_mean(behind, horizon), np.nan),
        reason=reason,
    )


def spike_thresholds(
    sigma: NDArray[np.float64], product: NDArray[np.object_], spec: TimescaleSpec, *, t_ns: NDArray[np.int64]
) -> dict[str, float]:
    """Return τ per product: the `spec.quantile` quantile of σ over training rows.

    Args:
        sigma: forward volatility of the training rows, no NaN.
        product: name of each row's product.
        spec: the quantile.
        t_ns: each row's time, for the error message only.

    Raises:
        DegenerateThreshold: τ is not above the resolution of a return, or because of ties more than twice the
            intended share of rows is at or above it.

    Examples:
        >>> from cryptovol_dagster.core.samples import SPEC
        >>> sigma, names = np.linspace(1e-5, 1e-4, 10), np.array(["BTC-USD"] * 10, dtype=object)
        >>> thresholds = spike_thresholds(sigma, names, SPEC, t_ns=np.arange(10))
        >>> {name: f"{tau:.2e}" for name, tau in thresholds.items()}
        {'BTC-USD': '9.10e-05'}
    """
    thresholds: dict[str, float] = {}
    for name in sorted(pd.unique(product)):
        own = product == name
        values = sigma[own]
        tau = float(np.quantile(values, spec.quantile))
        share = float(np.mean(values >= tau))
        if tau <= SIGMA_FLOOR or share > 2 * (1 - spec.quantile):
            raise DegenerateThreshold(
                f"degenerate spike threshold for {name}: the {spec.quantile:g} quantile of volatility over "
                f"{iso_utc(int(t_ns[own].min()))} … {iso_utc(int(t_ns[own].max()))} is {tau:.3g}, "
                f"and {share:.0%} of {values.size} rows are at or above it"
            )
        thresholds[str(name)] = tau
    return thresholds


def is_spike(
    sigma: NDArray[np.float64], product: NDArray[np.object_], thresholds: dict[str, float]
) -> NDArray[np.bool_]:
    """Return for each row whether ``σ >= τ`` of its product; NaN (unknown) is False.

    Raises:
        LearningError: a product has no threshold.

    Examples:
        >>> names = np.array(["BTC-USD", "ETH-USD"], dtype=object)
        >>> is_spike(np.array([3e-5, 3e-5]), names, {"BTC-USD": 2e-5, "ETH-USD": 4e-5})
        array([ True, False])
    """
    index, names = pd.factorize(product)
    if missing := [str(name) for name in names if name not in thresholds]:
        raise LearningError(f"no spike threshold for {', '.join(missing)}: absent from the training span")
    taus = np.array([thresholds[name] for name in names], dtype=np.float64)
    return sigma >= taus[index] if len(names) else np.zeros(sigma.shape, dtype=bool)


def _window_sums(
    values: NDArray[np.int64], horizon: int, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sums over bars s+1 … s+H and s−H+1 … s for s in [first, last); shorter at the grid's ends."""
    n_bars = values.shape[1]
    running = np.zeros((values.shape[0], n_bars + 1), dtype=np.int64)
    # The running total may wrap around 2^63; differences of wrapped totals are exact all the same.
    np.cumsum(values, axis=1, out=running[:, 1:])
    rows = np.arange(first, last)
    after = running[:, np.minimum(rows + 1 + horizon, n_bars)] - running[:, rows + 1]
    before = running[:, rows + 1] - running[:, np.maximum(rows + 1 - horizon, 0)]
    return after, before


def _root_mean(sums: NDArray[np.int64], horizon: int) -> NDArray[np.float64]:
    return np.sqrt(sums / horizon) * 1e-9
