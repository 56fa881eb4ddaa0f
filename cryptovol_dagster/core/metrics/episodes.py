"""Episodes of a stream of probabilities by hysteresis, and how they compare with the spikes that came.

A probability that crosses its threshold back and forth would be an alarm each time. An episode is one alarm:
it opens after several high bars, and closes after several low ones. The live path steps bar by bar
(`EpisodeState.step`); an evaluation has all bars at once (`ScoredBars`), with equal episodes.

Belongs here: the rule, the state, and the comparison with spike events. Does not belong here: the choice of
a rule, and messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from cryptovol_dagster.core.metrics.events import Event, Market
from cryptovol_dagster.core.specs import NS
from ingestor.errors import CryptovolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Longest window of a rule, in bars: a state keeps one bit for each.
MAX_WINDOW = 60
_RECENT_BITS = (1 << MAX_WINDOW) - 1
#: Closing time of an episode that is open at the last bar.
_NEVER = 2**63 - 1
#: Outcomes of a closed episode: the probability fell, or there was none for too long.
ENDED, UNKNOWN = "ended", "unknown"
Outcome = Literal["ended", "unknown"]


class EpisodeError(CryptovolError, ValueError):
    """A rule is impossible, or a bar is not after the one before; the message is one line."""


class EpisodeRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rule of opening and closing; windows are in bars.

    An episode opens at a bar of at least `enter`, where `k` of the last `n` bars are. It closes at the last
    of `m` bars in a row below `leave`. A bar without a probability neither opens nor closes; more than
    `unknown_after_bars` of them in a row close it.
    """

    enter: float
    leave: float
    k: int
    n: int
    m: int
    unknown_after_bars: int

    def __post_init__(self) -> None:
        """Check that the rule is possible.

        Raises:
            EpisodeError: it is not.
        """
        if not 0 <= self.leave <= self.enter <= 1:
            raise EpisodeError(
                f"episode rule: expected 0 ≤ leave ≤ enter ≤ 1, found leave {self.leave}, enter {self.enter}"
            )
        if not 1 <= self.k <= self.n <= MAX_WINDOW:
            raise EpisodeError(
                f"episode rule: expected 1 ≤ k ≤ n ≤ {MAX_WINDOW}, found k {self.k}, n {self.n}"
            )
        if self.m < 1 or self.unknown_after_bars < 0:
            raise EpisodeError(
                f"episode rule: expected m of at least 1 and unknown_after_bars of at least 0, found m "
                f"{self.m}, unknown_after_bars {self.unknown_after_bars}"
            )


class EpisodeChange(NamedTuple):
    """An episode that opened or closed.

    Attributes:
        kind: ``opened`` or ``closed``.
        bar_end_ns: end of the bar at which it did; a closed episode does not contain this bar.
        opened_ns: end of the episode's first bar.
        outcome: why it closed; None where it opened.
        greatest: greatest probability so far.
    """

    kind: Literal["opened", "closed"]
    bar_end_ns: int
    opened_ns: int
    outcome: Outcome | None
    greatest: float


class Step(NamedTuple):
    """The state after a bar, and what changed with it, in order: one change at most, two after a hole."""

    state: EpisodeState
    changes: tuple[EpisodeChange, ...]


class EpisodeState(msgspec.Struct, frozen=True, gc=False):
    """State of one product between two bars; `msgspec.to_builtins` and `msgspec.convert` store and read it.

    It is immutable: to revise a bar, step again from the state before it. The rule is an argument of each
    step, so another model with another rule continues an open episode.

    Attributes:
        bar_ns: length of a bar.
        last_ns: end of the newest bar; None before the first.
        recent: bits of the last bars, the newest lowest: whether each reached `enter`; zero after a closing.
        below: number of bars below `leave` in a row, in an episode.
        unknown: number of bars without a probability in a row.
        opened_ns: end of the first bar of the open episode; None where none is open.
        greatest: greatest probability of the open episode.

    Examples:
        >>> rule = EpisodeRule(enter=0.5, leave=0.4, k=2, n=3, m=1, unknown_after_bars=60)
        >>> state = EpisodeState(bar_ns=1)
        >>> for bar, probability in enumerate([0.6, 0.1, 0.7, None, 0.9, 0.2]):
        ...     state, changes = state.step(rule, bar, probability)
        ...     for change in changes:
        ...         print(bar, change.kind, change.opened_ns, change.outcome, change.greatest)
        2 opened 2 None 0.7
        5 closed 2 ended 0.9
    """

    bar_ns: int
    last_ns: int | None = None
    recent: int = 0
    below: int = 0
    unknown: int = 0
    opened_ns: int | None = None
    greatest: float = 0.0

    def step(self, rule: EpisodeRule, bar_end_ns: int, probability: float | None) -> Step:
        """Add a bar. Skipped bars count as bars without a probability.

        Args:
            rule: of the model that scored the bar.
            bar_end_ns: later than every bar before, by whole bars.
            probability: None or NaN where there is none.

        Raises:
            EpisodeError: the bar is not after the newest one, or between two bars.
        """
        bars = self._bars_to(bar_end_ns)
        known = probability is not None and not math.isnan(probability)
        missing = bars - 1 if known else bars
        recent, below, opened_ns, greatest = self.recent, self.below, self.opened_ns, self.greatest
        changes: tuple[EpisodeChange, ...] = ()
        if missing:
            recent = (recent << min(missing, MAX_WINDOW)) & _RECENT_BITS
            if opened_ns is not None and self.unknown + missing > rule.unknown_after_bars:
                at_ns = bar_end_ns - self.bar_ns * (bars - max(1, rule.unknown_after_bars + 1 - self.unknown))
                changes = (EpisodeChange("closed", at_ns, opened_ns, UNKNOWN, greatest),)
                recent, below, opened_ns, greatest = 0, 0, None, 0.0
        if probability is None or not known:
            unknown = self.unknown + missing
            return Step(
                EpisodeState(self.bar_ns, bar_end_ns, recent, below, unknown, opened_ns, greatest), changes
            )
        recent = ((recent << 1) | (probability >= rule.enter)) & _RECENT_BITS
        if opened_ns is not None:
            below = below + 1 if probability < rule.leave else 0
            greatest = max(greatest, probability)
            if below >= rule.m:
                changes = (EpisodeChange("closed", bar_end_ns, opened_ns, ENDED, greatest),)
                recent, below, opened_ns, greatest = 0, 0, None, 0.0
        elif recent & 1 and (recent & ((1 << rule.n) - 1)).bit_count() >= rule.k:
            opened_ns, greatest = bar_end_ns, probability
            changes = (*changes, EpisodeChange("opened", bar_end_ns, bar_end_ns, None, probability))
        return Step(EpisodeState(self.bar_ns, bar_end_ns, recent, below, 0, opened_ns, greatest), changes)

    def _bars_to(self, bar_end_ns: int) -> int:
        if self.last_ns is None:
            return 1
        bars, rest = divmod(bar_end_ns - self.last_ns, self.bar_ns)
        if rest or bars < 1:
            raise EpisodeError(
                f"episode state: expected a bar end a multiple of {self.bar_ns} ns after {self.last_ns}, "
                f"found {bar_end_ns}"
            )
        return bars


class Episode(msgspec.Struct, frozen=True):
    """An episode of one product.

    Attributes:
        product: its name.
        opened_ns: end of its first bar.
        closed_ns: end of the first bar after it; None where it is open at the last bar.
        outcome: why it closed; None where it is open.
        greatest: greatest probability.
    """

    product: str
    opened_ns: int
    closed_ns: int | None
    outcome: Outcome | None
    greatest: float


def episode_id(chain: str, product: str, opened_ns: int) -> str:
    """Return the id of an episode, which is the same in each run over the same scores.

    Args:
        chain: name of the chain.
        product: name of the product.
        opened_ns: end of its first bar.

    Examples:
        >>> episode_id("seconds", "BTC-USD", 1_700_000_000_000_000_000)
        'seconds/BTC-USD/1700000000000000000'
    """
    return f"{chain}/{product}/{opened_ns}"


class ScoredBars:
    """All bars of a span, to replay rules on; the episodes are those of `EpisodeState.step`.

    Work that several rules share is done once, and a rule costs time for its episodes only.

    Examples:
        >>> t_ns, p = np.arange(6), np.array([0.6, 0.1, 0.7, np.nan, 0.9, 0.2])
        >>> bars = ScoredBars(np.array(["BTC-USD"] * 6, dtype=object), t_ns, p, bar_ns=1)
        >>> rule = EpisodeRule(enter=0.5, leave=0.4, k=2, n=3, m=1, unknown_after_bars=60)
        >>> [(one.opened_ns, one.closed_ns, one.outcome, one.greatest) for one in bars.episodes(rule)]
        [(2, 5, 'ended', 0.9)]
    """

    def __init__(
        self,
        product: NDArray[np.object_],
        bar_end_ns: NDArray[np.int64],
        probability: NDArray[np.float64],
        bar_ns: int,
    ) -> None:
        """Sort the bars by product.

        Args:
            product: name of each row's product, shape (n,).
            bar_end_ns: ascending within a product, shape (n,).
            probability: NaN where there is none, shape (n,).
            bar_ns: length of a bar.

        Raises:
            EpisodeError: bars of a product do not ascend by whole bars.
        """
        codes, names = pd.factorize(product, sort=True)
        self._of: dict[str, _ProductBars] = {}
        for code, name in enumerate(names):
            own = np.flatnonzero(codes == code)
            self._of[str(name)] = _ProductBars(bar_end_ns[own], probability[own], bar_ns)

    def episodes(self, rule: EpisodeRule) -> list[Episode]:
        """Return the episodes by a rule, by product and time."""
        return [Episode(name, *found) for name, bars in self._of.items() for found in bars.episodes(rule)]


class _ProductBars:
    """Bars of one product. Indices below count its bars with a probability."""

    def __init__(self, t_ns: NDArray[np.int64], p: NDArray[np.float64], bar_ns: int) -> None:
        place, rest = np.divmod(t_ns - t_ns[0], bar_ns)
        if rest.any() or (np.diff(place) < 1).any():
            raise EpisodeError(f"episodes: expected bar ends that ascend by multiples of {bar_ns} ns")
        known = ~np.isnan(p)
        self._start_ns, self._bar_ns = int(t_ns[0]), bar_ns
        self._place, self._p = place[known], p[known]
        #: Bars without a probability after each bar that has one.
        self._missing = np.append(self._place[1:], place[-1] + 1) - self._place - 1
        self._reached = cache(self._find_reached)
        self._closing = cache(self._find_closing)
        self._lost = cache(self._find_lost)

    def _find_reached(self, enter: float, k: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the bars of at least `enter`, and which of these are the k-th of n bars."""
        high = np.flatnonzero(self._p >= enter)
        spans = self._place[high[k - 1 :]] - self._place[high[: max(high.size - k + 1, 0)]]
        return high, np.flatnonzero(spans < n) + k - 1

    def _find_closing(self, leave: float, m: int) -> NDArray[np.int64]:
        """Return the bars that are at least the m-th below `leave` in a row."""
        index = np.arange(self._p.size)
        last_above = np.maximum.accumulate(np.where(self._p < leave, -1, index))
        return np.flatnonzero(index - last_above >= m)

    def _find_lost(self, after: int) -> NDArray[np.int64]:
        """Return the bars that more than `after` bars without a probability follow."""
        return np.flatnonzero(self._missing > after)

    def episodes(self, rule: EpisodeRule) -> Iterator[tuple[int, int | None, Outcome | None, float]]:
        high, reached = self._reached(rule.enter, rule.k, rule.n)
        if not reached.size:
            return
        end, opened = self._p.size, high[reached]
        closes = _next(self._closing(rule.leave, rule.m), opened, end)
        # A bar that closes an episode comes before the hole that follows this bar.
        last = np.minimum(closes, _next(self._lost(rule.unknown_after_bars), opened, end))
        # Bars up to `last` do not count, so the next opening is the k-th high bar after it.
        following = np.searchsorted(reached, np.searchsorted(high, last + 1) + rule.k - 1).tolist()
        at, found = 0, []
        while at < reached.size:
            found.append(at)
            at = following[at]
        opened, closes, last = opened[found], closes[found], last[found]
        bounds = np.column_stack([opened, last + 1]).clip(max=end).ravel()
        greatest = np.maximum.reduceat(np.append(self._p, -np.inf), bounds)[::2]
        ended, is_open = closes == last, last == end
        place = self._place[last - is_open] + np.where(ended, 0, rule.unknown_after_bars + 1)
        times = (self._start_ns + self._bar_ns * at_bar for at_bar in (self._place[opened], place))
        rows = (column.tolist() for column in (*times, ended, is_open, greatest))
        for opened_ns, closed_ns, by_rule, still, top in zip(*rows, strict=True):
            if still:
                yield opened_ns, None, None, top
            else:
                yield opened_ns, closed_ns, ENDED if by_rule else UNKNOWN, top


def _next(found: NDArray[np.int64], at: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Return the first index found from each of `at` on; `end` where there is none."""
    return np.append(found, end)[np.searchsorted(found, at)]


class EpisodeResult(NamedTuple):
    """An episode compared with the spikes that came.

    Attributes:
        episode: the episode.
        event: the first spike event with a row in it; None where the episode was false.
        lead_s: seconds from its opening until the trailing volatility itself shows the spike: when a
            measurement alone would have shown it. Negative where that was earlier; None where it never did.
        duration_s: seconds from opening to closing; None where it is open.
    """

    episode: Episode
    event: Event | None
    lead_s: float | None
    duration_s: float | None


def compare_episodes(episodes: Sequence[Episode], market: Market) -> list[EpisodeResult]:
    """Compare episodes with the spike events of the labels.

    An episode is true where a row in it is inside an event. A row's label covers the H after it, so this
    includes a spike that shows within H after the episode's last bar. The order is that of the episodes.

    Args:
        episodes: of products of the market, or others; those are false.
        market: labelled rows of the span.

    Examples:
        >>> y, visible = np.array([0, 1, 1, 1, 0, 0], dtype=bool), np.array([0, 0, 0, 1, 1, 0], dtype=bool)
        >>> names, t_ns = np.array(["BTC-USD"] * 6, dtype=object), NS * np.arange(6)
        >>> market = Market(names, t_ns, y, visible, bar_ns=NS, horizon_ns=2 * NS)
        >>> (found,) = compare_episodes([Episode("BTC-USD", NS, 4 * NS, "ended", 0.9)], market)
        >>> found.event.start_ns // NS, found.lead_s, found.duration_s
        (1, 2.0, 3.0)
    """
    foreseen = match_episodes(episodes, market).events
    return [_compared(*pair, market) for pair in zip(episodes, foreseen, strict=True)]


def _compared(episode: Episode, event: Event | None, market: Market) -> EpisodeResult:
    opened_ns, closed_ns = episode.opened_ns, episode.closed_ns
    shown_ns = None if event is None else market.first_visible_ns(event)
    return EpisodeResult(
        episode=episode,
        event=event,
        lead_s=None if shown_ns is None else (shown_ns - opened_ns) / NS,
        duration_s=None if closed_ns is None else (closed_ns - opened_ns) / NS,
    )


class Matches(NamedTuple):
    """Which episodes and events belong together.

    Attributes:
        events: first event with a row in each episode; None where the episode was false.
        found: number of events with an episode in them.
        pairs: number of pairs of an episode and an event, where each is in one pair at most.
        total: number of events.
    """

    events: list[Event | None]
    found: int
    pairs: int
    total: int

    @property
    def true(self) -> int:
        """Number of true episodes."""
        return sum(event is not None for event in self.events)

    @property
    def f1(self) -> float | None:
        """F1 of pairs: an episode over many events counts once, and so does an event with many episodes.

        None without episodes and events.
        """
        both = len(self.events) + self.total
        return 2 * self.pairs / both if both else None


def match_episodes(episodes: Sequence[Episode], market: Market) -> Matches:
    """Match episodes with the spike events of the labels, as `compare_episodes` says.

    Args:
        episodes: those of a product neither overlap nor repeat.
        market: labelled rows of the span.

    Examples:
        >>> y, t_ns = np.array([False, True, False]), NS * np.arange(3)
        >>> names = np.array(["BTC-USD"] * 3, dtype=object)
        >>> market = Market(names, t_ns, y, ~y & False, bar_ns=NS, horizon_ns=NS)
        >>> match_episodes([Episode("BTC-USD", 2 * NS, None, None, 0.9)], market)
        Matches(events=[None], found=0, pairs=0, total=1)
    """
    matched: list[Event | None] = [None] * len(episodes)
    places: dict[str, list[int]] = {}
    for place, episode in enumerate(episodes):
        places.setdefault(episode.product, []).append(place)
    found = pairs = 0
    for product, events in market.events_by_product.items():
        own = sorted(places.get(product, []), key=lambda place: episodes[place].opened_ns)
        if not own or not events:
            continue
        opened = np.array([episodes[place].opened_ns for place in own])
        closed = np.array([_NEVER if (at := episodes[place].closed_ns) is None else at for place in own])
        starts = np.array([event.start_ns for event in events])
        ends = np.array([event.end_ns for event in events])
        # Events with a row in an episode: from the first that ends after its opening, up to `until`.
        first, until = np.searchsorted(ends, opened), np.searchsorted(starts, closed)
        paired = 0  # events before it are in a pair, or can be in none
        for place, one, stop in zip(own, first.tolist(), until.tolist(), strict=True):
            if one < stop:
                matched[place] = events[one]
            if max(one, paired) < stop:
                paired = max(one, paired) + 1
                pairs += 1
        last = np.searchsorted(opened, ends, "right") - 1  # the last episode that opens before its end
        found += int(np.sum((last >= 0) & (closed[last] > starts)))
    return Matches(matched, found, pairs, sum(map(len, market.events_by_product.values())))


class EpisodeCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Episodes of some rows compared with their spike events; null where there is nothing to divide by.

    Precision is the share of true episodes, recall the share of events with an episode in them. F1 counts
    pairs of an episode and an event, each in one pair at most: an episode over many events does not count
    more than once. The medians are of true episodes.
    """

    rows: int
    hours: float
    episodes: int
    true_episodes: int
    false_episodes: int
    false_episodes_per_hour: float
    unknown_episodes: int
    events: int
    events_found: int
    precision: float | None
    recall: float | None
    f1: float | None
    median_lead_s: float | None
    median_duration_s: float | None


def count_episodes(episodes: Sequence[Episode], market: Market) -> EpisodeCounts:
    """Count true and false episodes, found events and the lead of the episodes.

    Args:
        episodes: of the market's rows.
        market: labelled rows, at least one.

    Examples:
        >>> y = np.array([False, True, False, False, False, True])
        >>> names, t_ns = np.array(["BTC-USD"] * 6, dtype=object), NS * np.arange(6)
        >>> market = Market(names, t_ns, y, ~y & False, bar_ns=NS, horizon_ns=NS)
        >>> episodes = [Episode("BTC-USD", at * NS, (at + 1) * NS, "ended", 0.9) for at in (1, 3)]
        >>> counts = count_episodes(episodes, market)
        >>> counts.true_episodes, counts.false_episodes, counts.events_found, counts.f1
        (1, 1, 1, 0.5)
    """
    matches = match_episodes(episodes, market)
    compared = [_compared(*pair, market) for pair in zip(episodes, matches.events, strict=True)]
    true = [one for one in compared if one.event is not None]
    false = len(compared) - len(true)
    leads = [one.lead_s for one in true if one.lead_s is not None]
    durations = [one.duration_s for one in true if one.duration_s is not None]
    return EpisodeCounts(
        rows=market.t_ns.size,
        hours=market.hours,
        episodes=len(compared),
        true_episodes=len(true),
        false_episodes=false,
        false_episodes_per_hour=false / market.hours,
        unknown_episodes=sum(one.outcome == UNKNOWN for one in episodes),
        events=matches.total,
        events_found=matches.found,
        precision=len(true) / len(compared) if compared else None,
        recall=matches.found / matches.total if matches.total else None,
        f1=matches.f1,
        median_lead_s=median(leads) if leads else None,
        median_duration_s=median(durations) if durations else None,
    )
