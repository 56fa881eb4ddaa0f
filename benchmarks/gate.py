"""`python -m benchmarks.gate`: how often the promotion gate errs, and how soon it promotes a better model.

A *month* is 30 days of retrains against one champion, decided by the very functions of `core/promotion`.
Two models are equal where both are the same truth seen through independent noise of the same strength, or the
same learner with another seed; a month in which one of them takes the other's place is a false promotion.
Beside it stands what a gate without a budget does in the same months.

Markets: a synthetic one (volatility on scales of minutes, hours and days) and, where ``../shared/data`` is
there, the exchange's minute bars of the folds whose test ends in 2024; later ones are reserved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.performance_page import publish
from benchmarks.table import machine
from cryptovol_dagster.core.metrics.bootstrap import BlockBootstrap, interval
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.promotion import decision
from cryptovol_dagster.core.promotion.decision import PROMOTE, Champion, Contest, Decision
from cryptovol_dagster.core.promotion.measured import Measured, Numbers
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION, decide
from cryptovol_dagster.core.specs import DAY_S, NS, GateSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

BARS = Path(__file__).parents[2] / "shared" / "data" / "bars"
BAR_S, HORIZON_BARS = 60, 5
DAY_BARS = DAY_S // BAR_S
DAYS = 30
#: Later days are reserved; the first day leaves room for training before it.
FIRST_DAY, LAST_DAY = datetime(2023, 12, 5, tzinfo=UTC), datetime(2024, 12, 31, tzinfo=UTC)
TRAIN_DAYS = 60
#: Fewer than in service: here the standard error is averaged over many months.
RESAMPLES = 100
EFFECTS = (0.01, 0.03, 0.09)
DAYS_SHOWN = (1, 2, 4, 8, 16, 28)
PARTS = ("equal", "better", "real")


@dataclass(frozen=True)
class Market:
    """Labels of a month's minutes, one day of them before its first retrain.

    Attributes:
        t_ns: decision times.
        y: whether the next minutes are a spike.
        truth: the log-odds that a perfect model of this market would give.
    """

    t_ns: NDArray[np.int64]
    y: NDArray[np.bool_]
    truth: NDArray[np.float64]

    def until(self, day: int) -> int:
        """Rows before the retrain of a day, of which the first is 1."""
        return int(np.searchsorted(self.t_ns, self.start_ns + day * DAY_S * NS, side="right"))

    @property
    def start_ns(self) -> int:
        """A day before the first retrain."""
        return int(self.t_ns[0]) - BAR_S * NS


def persistent(size: int, half_life_bars: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Standard normal noise that forgets half of itself in some bars (AR(1))."""
    from scipy.signal import lfilter

    keep = 0.5 ** (1 / half_life_bars)
    shocks = random.normal(size=size) * np.sqrt(1 - keep * keep)
    shocks[0] = random.normal()
    return np.asarray(lfilter([1.0], [1.0, -keep], shocks))


def synthetic(random: np.random.Generator, days: int = DAYS) -> Market:
    """A market whose violence persists over minutes, hours and days; a tenth of its minutes are spikes."""
    size = days * DAY_BARS
    x = sum(
        weight * persistent(size + HORIZON_BARS, half_life, random)
        for weight, half_life in ((0.6, 10), (0.6, 180), (0.4, 2 * DAY_BARS))
    )
    ahead = np.asarray(x)[HORIZON_BARS:] + 0.35 * random.normal(size=size)
    ahead = np.convolve(ahead, np.full(HORIZON_BARS, 1 / HORIZON_BARS), "same")
    t_ns = (np.arange(size, dtype=np.int64) + 1 + 28_000_000) * BAR_S * NS
    return Market(t_ns, ahead >= 1.28 * 0.94, np.asarray(x)[:size])


@dataclass(frozen=True)
class Seen:
    """A model as a truth seen through noise.

    Attributes:
        noise: its standard deviation.
        half_life_bars: how long its mistakes last.
    """

    noise: float
    half_life_bars: float = 30.0

    def scores(self, market: Market, random: np.random.Generator) -> NDArray[np.float64]:
        """P(spike) of each row, by a model of this quality."""
        noise = self.noise * persistent(market.y.size, self.half_life_bars, random)
        return 1 / (1 + np.exp(-(market.truth + noise)))


@dataclass(frozen=True)
class Month:
    """What came of a month.

    Attributes:
        promoted_on: the day of the first promotion; None without one.
        analyses: number of interim analyses.
    """

    promoted_on: int | None
    analyses: int


@dataclass
class MonthRows:
    """`ContestRows` of a month: a nomination takes the next challenger.

    Attributes:
        market: the rows.
        champion: its scores of every row.
        challengers: the scores of each model that is nominated, in turn.
        end_ns: the time of the retrain at hand.
        challenger: the scores of the model nominated last.
    """

    market: Market
    champion: NDArray[np.float64]
    challengers: Iterator[NDArray[np.float64]]
    end_ns: int
    challenger: NDArray[np.float64] | None = None

    def why_unscorable(self, champion: Champion) -> str:
        return ""

    def why_challenger_unscorable(self, contest: Contest) -> str:
        return ""

    def validation(self) -> dict[str, float | None]:
        self.challenger = next(self.challengers)
        return {"xgboost": 0.5}

    def hold_out(self, champion: Champion, contest: Contest) -> ScoredRows:
        if self.challenger is None:
            raise SystemExit("a hold-out without a challenger")
        rows = slice(*np.searchsorted(self.market.t_ns, [contest.start_ns + 1, self.end_ns + 1]))
        named = {THE_CHAMPION: self.champion[rows], THE_CHALLENGER: self.challenger[rows]}
        return ScoredRows(self.market.t_ns[rows], BAR_S * NS, self.market.y[rows], named)

    def matured(self, champion: Champion) -> ScoredRows:
        raise SystemExit("no champion expires here")


def month(
    market: Market,
    champion: NDArray[np.float64],
    challengers: Iterator[NDArray[np.float64]],
    gate: GateSpec,
    *,
    retrain_days: int = 1,
) -> Month:
    """Retrain and decide for a month, until the first promotion.

    Args:
        market: at least as many days as a retrain tests on, and `DAYS`.
        champion: its scores of every row.
        challengers: the scores of each model that is nominated, in turn.
        gate: how they are measured.
        retrain_days: days between two retrains, and in a test.
    """
    start_ns = market.start_ns
    reigning = Champion(
        "ewma", "2023-01-01", "before", "features", "run", unproven=False, unseen_from_ns=start_ns
    )
    before = Decision("2023-01-01", decision.HOLD, ("",), reigning, decided_as_of="2023-01-01")
    # Expiry is another matter, and must not end a month.
    gate = replace(gate, champion_max_age_s=float("inf"))
    rows = MonthRows(market, champion, challengers, start_ns)
    analyses = 0
    for day in range(retrain_days, DAYS + 1, retrain_days):
        end_ns = start_ns + day * DAY_S * NS
        key = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")
        found = _retrained(key, end_ns, end_ns - retrain_days * DAY_S * NS)
        rows.end_ns = end_ns
        before = decide(found, before, rows, horizon_s=HORIZON_BARS * BAR_S, gate=gate)
        analyses += before.challenge is not None and before.challenge.difference is not None
        if before.verdict == PROMOTE:
            return Month(day, analyses)
    return Month(None, analyses)


def _retrained(key: str, end_ns: int, test_ns: int) -> Measured:
    trained = Champion(
        "xgboost", key, f"rows {key}", "features", f"run {key}", unproven=False, unseen_from_ns=test_ns
    )
    return Measured(
        as_of=key,
        end_ns=end_ns,
        sufficient=True,
        reasons=(),
        numbers={"xgboost": Numbers(0.5, 0.05)},
        differences={},
        trained={"xgboost": trained},
        data_hash="",
        feature_hash="features",
        evaluation_hash="",
    )


def naive_month(
    market: Market, champion: NDArray[np.float64], challengers: Iterator[NDArray[np.float64]], *, bound: bool
) -> Month:
    """Take each day's new model when it ranks better on the day before: at all, or by a 97.5 % bound."""
    for day in range(1, DAYS + 1):
        rows = slice(market.until(day - 1), market.until(day))
        y, new = market.y[rows], next(challengers)[rows]
        if not y.any():
            continue
        if not bound:
            better = average_precision(y, new) > average_precision(y, champion[rows])
        else:
            bootstrap = BlockBootstrap(market.t_ns[rows], BAR_S * NS, 7_200, RESAMPLES, day)
            found = bootstrap.average_precisions(y, {"new": new, "old": champion[rows]})
            better = interval(found["new"] - found["old"]).low > 0
        if better:
            return Month(day, day)
    return Month(None, DAYS)


# --- the exchange's minutes
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """A month of real minutes, and what learners trained on the 60 days before make of it.

    Attributes:
        market: with the first learner's log-odds as truth.
        learners: scores of the same learner with one seed each.
        ewma: scores of an exponential average.
    """

    market: Market
    learners: tuple[NDArray[np.float64], ...]
    ewma: NDArray[np.float64]


def real_folds(seeds: int) -> Iterator[Fold]:
    """Train on 60 days, score the 30 after, month by month, each product by itself."""
    for name in ("btc", "eth"):
        bars = pd.read_parquet(BARS / f"coinbase_{name}_usd_1m.parquet")
        day = FIRST_DAY
        while day + timedelta(days=DAYS) <= LAST_DAY + timedelta(days=1):
            yield _fold(bars, day, seeds)
            day += timedelta(days=DAYS)


def _fold(bars: pd.DataFrame, day: datetime, seeds: int) -> Fold:
    import xgboost as xgb

    first, last = day - timedelta(days=TRAIN_DAYS + 2), day + timedelta(days=DAYS)
    bars = bars[(bars["bar_open"] >= first) & (bars["bar_open"] < last)].set_index("bar_open")
    bars = bars.reindex(pd.date_range(first, last, freq="1min", inclusive="left", tz=UTC))
    columns, sigma = _columns(pd.DataFrame(bars))
    known = columns.notna().all(axis=1) & sigma.notna()
    t = columns.index + pd.Timedelta(seconds=BAR_S)
    train = known & (t <= day - timedelta(seconds=2 * HORIZON_BARS * BAR_S))
    test = known & (t > day)
    y = sigma >= float(np.quantile(sigma.to_numpy()[train], 0.9))
    parameters = {
        "objective": "binary:logistic",
        "max_depth": 3,
        "eta": 0.08,
        "min_child_weight": 50,
        "subsample": 0.6,
        "colsample_bytree": 0.6,
        "lambda": 10,
        "nthread": 1,
    }
    rows = xgb.DMatrix(columns[train], y[train])
    learners = tuple(
        np.asarray(
            xgb.train(parameters | {"seed": seed}, rows, num_boost_round=120).predict(
                xgb.DMatrix(columns[test])
            ),
            dtype=np.float64,
        )
        for seed in range(seeds)
    )
    odds = np.log(learners[0] / (1 - learners[0]))
    t_ns = t[test].as_unit("ns").asi8
    market = Market(t_ns.astype(np.int64), y[test].to_numpy(), odds)
    ewma = columns.loc[test, "ewma"].to_numpy()
    return Fold(market, learners, 1 / (1 + np.exp(-(ewma - ewma.mean()))))


def _columns(bars: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """A dozen features of past Garman–Klass variance and returns, and volatility over the next bars."""
    logs = pd.DataFrame(np.log(bars[["open", "high", "low", "close"]]))
    close = logs["close"]
    variance = 0.5 * (logs["high"] - logs["low"]) ** 2 - (2 * np.log(2) - 1) * (close - logs["open"]) ** 2
    floor = 1e-9
    found = {
        f"gk_{w}": np.log(variance.rolling(w, min_periods=int(0.9 * w)).mean() + floor)
        for w in (1, 5, 15, 60, 240, DAY_BARS)
    }
    found |= {f"ret_{w}": (close - close.shift(w)).abs() for w in (1, 5, 60)}
    found["ewma"] = np.log(variance.ewm(halflife=10, ignore_na=True).mean() + floor)
    index = pd.DatetimeIndex(bars.index)
    hour = (index - index.normalize()).total_seconds().to_numpy() / DAY_S * 2 * np.pi
    found |= {"sin": pd.Series(np.sin(hour), bars.index), "cos": pd.Series(np.cos(hour), bars.index)}
    ahead = variance.rolling(HORIZON_BARS, min_periods=HORIZON_BARS).mean().shift(-HORIZON_BARS)
    return pd.DataFrame(found), ahead.clip(lower=0) ** 0.5


# --- what is printed
# ------------------------------------------------------------------------------------------------------


def noise_for(market: Market, precision: float, random_seed: int) -> float:
    """Find the noise at which a model has some average precision on a market, by bisection."""
    low, high = 0.0, 4.0
    for _ in range(12):
        middle = (low + high) / 2
        found = average_precision(market.y, Seen(middle).scores(market, np.random.default_rng(random_seed)))
        low, high = (middle, high) if found > precision else (low, middle)
    return (low + high) / 2


def endless(draw: Callable[[], NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    """Give a new model whenever one is asked for."""
    while True:
        yield draw()


def rate_line(name: str, months: Sequence[Month]) -> str:
    """Say how many months had a promotion, with the exact binomial interval."""
    from scipy.stats import binomtest

    hits = sum(found.promoted_on is not None for found in months)
    bounds = binomtest(hits, len(months)).proportion_ci()
    analyses = np.mean([found.analyses for found in months])
    share = hits / len(months)
    between = f"[{bounds.low:.1%}, {bounds.high:.1%}]"
    return f"{name:<74} {share:6.1%} {between}  {hits}/{len(months)}, {analyses:.1f} analyses"


def power_line(name: str, months: Sequence[Month]) -> str:
    """Say by which day which share of months had a promotion."""
    days = [found.promoted_on or DAYS + 1 for found in months]
    shares = "  ".join(f"{np.mean([day <= until for day in days]):5.0%}" for until in DAYS_SHOWN)
    return f"{name:<74} {shares}   ({len(months)} months)"


def noise_pair(
    market: Market, champion: Seen, challenger: Seen, random: np.random.Generator
) -> tuple[NDArray[np.float64], Iterator[NDArray[np.float64]]]:
    """A champion, and challengers as often as one is nominated."""
    return champion.scores(market, random), endless(lambda: challenger.scores(market, random))


def equal_models(months: int, gate: GateSpec) -> Iterator[str]:
    """Equal models on the synthetic market, ours beside the naive ones."""
    for half_life in (30.0, 240.0):
        seen = Seen(0.6, half_life)
        random = np.random.default_rng(11)
        ours, rare = [], []
        for _ in range(months):
            market = synthetic(random)
            ours.append(month(market, *noise_pair(market, seen, seen, random), gate))
            rare.append(month(market, *noise_pair(market, seen, seen, random), gate, retrain_days=DAYS))
        what = f"synthetic, mistakes of {half_life / 60:g} h"
        yield rate_line(f"gate, daily retrains: {what}", ours)
        yield rate_line(f"gate, a retrain of 30 days: {what}", rare)
    random = np.random.default_rng(12)
    for bound in (False, True):
        found = []
        for _ in range(months // 4):
            market = synthetic(random)
            found.append(naive_month(market, *noise_pair(market, Seen(0.6), Seen(0.6), random), bound=bound))
        what = "97.5 % bound on each day" if bound else "new above old on each day"
        yield rate_line(f"naive, {what}: synthetic", found)
        if not bound:
            first = [replace(one, promoted_on=1 if one.promoted_on == 1 else None) for one in found]
            yield rate_line("naive, new above old, one retrain: synthetic", first)


def better_models(months: int, gate: GateSpec) -> Iterator[str]:
    """Challengers that are better by some average precision, on the synthetic market."""
    large = synthetic(np.random.default_rng(1), days=300)
    good = noise_for(large, 0.5, 2)
    for effect in EFFECTS:
        worse = Seen(noise_for(large, 0.5 - effect, 2))
        for retrain_days in (1, DAYS):
            random = np.random.default_rng(13)
            found = []
            for _ in range(months):
                market = synthetic(random)
                pair = noise_pair(market, worse, Seen(good), random)
                found.append(month(market, *pair, gate, retrain_days=retrain_days))
            how = "daily retrains" if retrain_days == 1 else "a retrain of 30 days (by day 30)"
            if retrain_days == 1:
                yield power_line(f"+{effect:.2f} average precision, {how}", found)
            else:
                yield rate_line(f"+{effect:.2f} average precision, {how}", found)


def on_real_bars(seeds: int, draws: int, gate: GateSpec) -> Iterator[str]:
    """The same on the exchange's minutes: seeds against each other, noise around one, and against EWMA."""
    random = np.random.default_rng(14)
    by_seed, rare, by_noise, naive, better, better_rare, aps = [], [], [], [], [], [], []
    for fold in real_folds(seeds):
        market, learners = fold.market, fold.learners
        for k in range(seeds):
            others = [learners[(k + j) % seeds] for j in range(1, seeds)]
            by_seed.append(month(market, learners[k], _in_turn(others), gate))
            rare.append(month(market, learners[k], _in_turn(others), gate, retrain_days=DAYS))
            naive.append(naive_month(market, learners[k], _in_turn(others), bound=False))
        for _ in range(draws):
            pair = noise_pair(market, Seen(0.5), Seen(0.5), random)
            by_noise.append(month(market, *pair, gate))
        better.append(month(market, fold.ewma, _in_turn(learners), gate))
        better_rare.append(month(market, fold.ewma, _in_turn(learners), gate, retrain_days=DAYS))
        aps.append([average_precision(market.y, one) for one in (*learners[:2], fold.ewma)])
    clusters = f"{len(aps)} months of 2 products"
    yield rate_line(f"gate, daily retrains: XGBoost, seeds, {clusters}", by_seed)
    yield rate_line(f"gate, a retrain of 30 days: XGBoost, seeds, {clusters}", rare)
    yield rate_line(f"gate, daily retrains: XGBoost + noise, {clusters}", by_noise)
    yield rate_line(f"naive, new above old on each day: XGBoost, seeds, {clusters}", naive)
    mean = np.mean(aps, axis=0)
    effect = f"{mean[0]:.3f} against {mean[2]:.3f}"
    yield power_line(f"XGBoost against EWMA on real minutes, {effect}, daily retrains", better)
    yield rate_line("XGBoost against EWMA on real minutes, a retrain of 30 days", better_rare)


def _in_turn(scores: Sequence[NDArray[np.float64]]) -> Iterator[NDArray[np.float64]]:
    while True:
        yield from scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--months", type=int, default=300, help="synthetic months of equal models")
    parser.add_argument("--seeds", type=int, default=5, help="learners of a real month")
    parser.add_argument("--draws", type=int, default=10, help="pairs with noise of a real month")
    parser.add_argument("--part", action="append", choices=PARTS, help="leave out the others")
    asked = parser.parse_args()
    gate = GateSpec(resamples=RESAMPLES)
    began = time.perf_counter()
    print(f"machine: {machine()}", flush=True)
    days = "     ".join(map(str, DAYS_SHOWN))
    parts = {
        "equal": ("months of equal models with a promotion", equal_models(asked.months, gate)),
        "better": (f"months with a promotion by day {days}", better_models(asked.months // 3, gate)),
        "real": ("real minutes", on_real_bars(asked.seeds, asked.draws, gate)),
    }
    shown: list[str] = []
    for part in asked.part or PARTS:
        title, lines = parts[part]
        is_absent = part == "real" and not BARS.is_dir()
        for line in (f"\n{title}", *([f"{BARS} is absent: nothing was measured"] if is_absent else lines)):
            shown.append(line)
            print(line, flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s", flush=True)
    publish("gate", f"{asked.months} synthetic months and real minutes", text="\n".join(shown))


if __name__ == "__main__":
    main()
