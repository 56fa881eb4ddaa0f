"""`python -m benchmarks.drift`: how often drift is called where nobody changed anything, by which limits.

Real minutes of BTC-USD and ETH-USD from ``../shared/data/bars`` up to the end of 2024, with the features of
the minutes timescale. Nothing is known to have broken in these months: whatever is called is a false alarm.

* days against the seven before, by Evidently's own choice of test and its limits, by the fixed limits of the
  settings, and by limits calibrated on the days before;
* hours against the 24 before, by the last two, and how often the sensor would ask for a report.

The limits are walk-forward, as in service: a window is judged by the pairs before it, the newest 720 of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.performance_page import publish
from benchmarks.table import machine
from cryptovol_dagster.chains import minutes_specs
from cryptovol_dagster.core.drift.distance import Drift, judge, product_drift, worst_of
from cryptovol_dagster.core.drift.limits import MIN_PAIRS, DriftLimits, Pair, limits_in_force
from cryptovol_dagster.core.specs import DAY_S, HOUR_S, NS
from cryptovol_dagster.history.rows import candle_grid, labelled_rows, read_candle_files
from cryptovol_dagster.monitoring.drift import SAMPLE_ROWS
from ingestor.settings import Settings

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from cryptovol_dagster.core.learning.dataset import Dataset

BARS = Path(__file__).parents[2] / "shared" / "data" / "bars"
#: Nobody looks at what comes after.
END = datetime(2025, 1, 1, tzinfo=UTC)
EVIDENTLY_ROWS, EVIDENTLY_SHARE = 20_000, 0.5


@dataclass(frozen=True)
class Windows:
    """Windows of one length, each compared with those before it.

    Attributes:
        name: for people.
        length_s: of a window.
        reference: how many before it make its reference.
        count: how many are judged, the newest.
    """

    name: str
    length_s: int
    reference: int
    count: int


@dataclass(frozen=True)
class Rows:
    """The features of the products, row after row in time.

    Attributes:
        names: of the features.
        values: by product, (rows × features).
        t_ns: by product, the decision times.
    """

    names: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    t_ns: dict[str, NDArray[np.int64]]

    def window(self, product: str, start_ns: int, end_ns: int) -> NDArray[np.float64]:
        """Give a product's rows of a span."""
        first, stop = np.searchsorted(self.t_ns[product], [start_ns, end_ns])
        return self.values[product][first:stop]


def read(bars: Path) -> Rows:
    """Make the features of every minute there is, up to `END`."""
    settings = Settings()
    spec = minutes_specs(settings.timescales.minutes)[0]
    candles = read_candle_files([bars], to_ns=int(END.timestamp()) * NS, now_ns=time.time_ns())
    rows: Dataset = labelled_rows(candle_grid(candles, spec), spec, settings.coinbase.products)
    own = {name: rows.product == name for name in rows.products}
    return Rows(
        tuple(map(str, rows.features.columns)),
        {name: rows.features.loc[mask].to_numpy(np.float64) for name, mask in own.items()},
        {name: rows.t_ns[mask] for name, mask in own.items()},
    )


def pairs_of(rows: Rows, windows: Windows) -> list[tuple[int, Pair]]:
    """Compare each window with those before it, the worst product counting, as `drift_scores` does."""
    length_ns, end_ns = windows.length_s * NS, int(END.timestamp()) * NS
    earliest_ns = max(int(times[0]) for times in rows.t_ns.values()) + windows.reference * length_ns
    found = []
    for start_ns in range(end_ns - windows.count * length_ns, end_ns, length_ns):
        if start_ns < earliest_ns:
            continue
        products = {}
        for product in rows.values:
            now = rows.window(product, start_ns, start_ns + length_ns)
            before = [
                sample[:: max(1, len(sample) // SAMPLE_ROWS)]
                for back in range(windows.reference, 0, -1)
                if len(
                    sample := rows.window(
                        product, start_ns - back * length_ns, start_ns - (back - 1) * length_ns
                    )
                )
            ]
            if len(now) >= SAMPLE_ROWS // 2 and before:
                products[product] = product_drift(now, np.concatenate(before), rows.names)
        if products:
            found.append((start_ns, Pair(str(start_ns), worst_of(products))))
    return found


def walked(pairs: Sequence[Pair], fixed: DriftLimits, most: int) -> list[Drift | None]:
    """Judge each pair by the limits of those before it; None where these are too few to calibrate on."""
    found: list[Drift | None] = []
    for at, pair in enumerate(pairs):
        limits = limits_in_force(pairs[max(0, at - most) : at], tuple(pair.distances), fixed)
        found.append(judge(pair.distances, limits) if limits.calibrated else None)
    return found


def by_evidently(rows: Rows, windows: Windows, starts_ns: Sequence[int]) -> list[Drift]:
    """Ask Evidently for each feature, by test and limit of its own choice, both products' rows together."""
    import pandas as pd
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    random = np.random.default_rng(7)
    length_ns = windows.length_s * NS
    found = []
    for start_ns in starts_ns:
        spans = (start_ns - windows.reference * length_ns, start_ns), (start_ns, start_ns + length_ns)
        before, now = (
            _sampled(np.concatenate([rows.window(name, *span) for name in rows.values]), random)
            for span in spans
        )
        columns: dict[str, float | None] = {}
        over = []
        for column, name in enumerate(rows.names):
            sides: list[pd.Series] = [pd.Series(side[:, column]).dropna() for side in (before, now)]
            if not all(len(side) for side in sides):
                continue
            test = get_stattest(*sides, ColumnType.Numerical, None)
            result = test(*sides, ColumnType.Numerical, None)
            columns[name] = float(result.drift_score)
            over.append(bool(result.drifted))
        share = float(np.mean(over))
        found.append(Drift(columns, share, share >= EVIDENTLY_SHARE))
    return found


def _sampled(values: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    if len(values) <= EVIDENTLY_ROWS:
        return values
    return values[np.sort(random.choice(len(values), EVIDENTLY_ROWS, replace=False))]


def rates_line(what: str, judged: Sequence[Drift]) -> str:
    """Return the rates of a way to judge."""
    shares = [drift.share_over for drift in judged if drift.share_over is not None]
    over = sum(drift.over_limit for drift in judged)
    return (
        f"  {what:<34} features over: {np.mean(shares):6.1%}   windows over: {over / len(judged):6.1%} "
        f"({over} of {len(judged)})"
    )


def reports(over: Sequence[bool], needed: int, looked_at: int, cool_down: int) -> int:
    """Count the reports the sensor would ask for."""
    count, free_from = 0, 0
    for at in range(len(over)):
        if at >= free_from and sum(over[max(0, at - looked_at + 1) : at + 1]) >= needed:
            count, free_from = count + 1, at + cool_down
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bars", type=Path, default=BARS, help="folder of minute candles")
    parser.add_argument("--days", type=int, default=400, help="newest days up to the end of 2024")
    parser.add_argument("--hour-days", type=int, default=120, help="days whose hours are judged")
    asked = parser.parse_args()
    if not asked.bars.is_dir():
        raise SystemExit(f"{asked.bars} is not there: name a folder of minute candles with --bars")
    print(f"machine: {machine()}")
    rows = read(asked.bars)
    source = f"{len(rows.names)} features, {', '.join(rows.values)}, windows up to {END:%Y-%m-%d}"
    print(f"{source}\n", flush=True)
    shown: list[str] = []
    for line in measured(rows, asked.days, asked.hour_days):
        shown.append(line)
        print(line, flush=True)
    publish("drift", source, text="\n".join(shown))


def measured(rows: Rows, days: int, hour_days: int) -> Iterator[str]:
    """Yield the lines of the text, each once it is known."""
    monitoring = Settings().monitoring
    fixed = DriftLimits(monitoring.drift_distance_limit, monitoring.drift_limit_share)
    by_day = Windows("days against 7 before", DAY_S, 7, days)
    by_hour = Windows("hours against 24 before", HOUR_S, 24, hour_days * 24 + MIN_PAIRS)
    for windows in (by_day, by_hour):
        starts, pairs = zip(*pairs_of(rows, windows), strict=True)
        calibrated = walked(pairs, fixed, monitoring.drift_calibration_hours)
        kept = [at for at, drift in enumerate(calibrated) if drift is not None]
        of_fixed = [judge(pairs[at].distances, limits_in_force([], rows.names, fixed)) for at in kept]
        of_calibrated = [drift for drift in calibrated if drift is not None]
        yield f"{windows.name}, the {len(kept)} with {MIN_PAIRS} or more pairs before them:"
        if windows is by_day:
            by_tests = by_evidently(rows, by_day, [starts[at] for at in kept])
            yield rates_line("Evidently's own tests and limits", by_tests)
        yield rates_line(f"fixed limits {fixed.distance:g} and {fixed.share:g}", of_fixed)
        yield rates_line("calibrated limits", of_calibrated)
        if windows is by_hour:
            sensor = (
                monitoring.drift_hours_needed,
                monitoring.drift_hours_looked_at,
                monitoring.drift_cool_down_hours,
            )
            for what, judged in (("fixed", of_fixed), ("calibrated", of_calibrated)):
                count = reports([drift.over_limit for drift in judged], *sensor)
                yield f"  reports asked for by {what} limits: {count} in {len(judged) / 24:.0f} days"
        yield ""


if __name__ == "__main__":
    main()
