"""One market's data: the folder that a recorder and the assets write, read as frames."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import pandas as pd
import pyarrow as pa

from cryptovol_dagster.api import computed
from cryptovol_dagster.api.columns import (
    BARS,
    COVERAGE,
    FEATURES,
    GAPS,
    KINDS,
    LABELS,
    SCORES,
    TICKS,
    TRADES,
    Kind,
    kind_of,
)  # fmt: skip
from cryptovol_dagster.api.errors import ApiError
from cryptovol_dagster.api.reading import Query, joined, newest_time
from cryptovol_dagster.api.spans import Time, parse_span
from cryptovol_dagster.chains import timescale_specs
from cryptovol_dagster.core.specs import SECONDS, TimescaleSpec
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.market import to_table
from cryptovol_dagster.lake.raw_ticks import RawStore
from ingestor.errors import did_you_mean
from ingestor.settings import Settings, load_settings
from ingestor.settings.load import ENV_CONFIG_FILE, LoadedSettings

if TYPE_CHECKING:
    from cryptovol_dagster.api.study import Study
    from cryptovol_dagster.inference.scorer import Scorer

CONFIG = "config.yaml"
Products = str | Sequence[str] | None
Columns = Sequence[str] | None
#: Return type of a market's methods.
Frame = TypeVar("Frame", pd.DataFrame, pa.Table)


def open(where: str | Path | None = None) -> Market[pd.DataFrame]:
    """Open a market's data.

    A folder with a `config.yaml` (``data/demo``, ``data/simulated``) is read with that configuration, any
    other one with the effective configuration. A relative path is searched here, then in the folders above,
    up to the first with a `config.yaml`: so it means the same in a notebook's folder.

    Args:
        where: a data folder, or a configuration file; by default the effective configuration:
            ``$CRYPTOVOL_CONFIG``, else the nearest `config.yaml` here or above.

    Raises:
        ApiError: there is no such folder.
        SettingsError: the configuration cannot be used.

    Example:
        >>> from cryptovol_dagster import api
        >>> market = api.open("data/demo")
        >>> market.bars("BTC-USD", "-1h")
    """
    if where is None:
        return in_force()
    folder = _find(Path(where))
    config = folder if folder.is_file() else folder / CONFIG
    if config.is_file():
        # The file is complete: values of the environment are for the default market.
        return Market(load_settings(config, environ={}).settings, config, to_pandas)
    settings = in_force().settings
    storage = settings.storage.model_copy(update={"data_dir": folder})
    return Market(settings.model_copy(update={"storage": storage}), None, to_pandas)


def in_force() -> Market[pd.DataFrame]:
    """Open the market of the effective configuration; see `open`.

    Raises:
        SettingsError: the configuration cannot be used.
    """
    named = Path(os.environ.get(ENV_CONFIG_FILE) or CONFIG)
    return market_of(load_settings(next((path for path in _upwards(named) if path.is_file()), None)))


def market_of(loaded: LoadedSettings) -> Market[pd.DataFrame]:
    """Open the market of a configuration that was read already, as in every verb."""
    named = loaded.config_file if os.environ.get(ENV_CONFIG_FILE) else None
    return Market(loaded.settings, named, to_pandas)


def _upwards(path: Path) -> Iterator[Path]:
    """Return the candidates of a relative path: here, and above up to a folder with a configuration."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        yield folder / path
        if (folder / CONFIG).is_file() or path.is_absolute():
            return


def _find(path: Path) -> Path:
    found = next((place for place in _upwards(path) if place.exists()), None)
    if found is None:
        known = [str(Path("data", config.parent.name)) for config in _markets()]
        there = f"there is {', '.join(known)}" if known else "`cryptovol demo` creates data/demo"
        raise ApiError(f"{path}: no such folder; {there}.{did_you_mean(str(path), known)}")
    return found.resolve()


def _markets() -> list[Path]:
    """List the configurations of the markets beside each other in `data`."""
    return sorted(config for data in _upwards(Path("data")) for config in data.glob(f"*/{CONFIG}"))


@dataclass(frozen=True)
class Market(Generic[Frame]):
    """One market's data as frames; returned by `cryptovol_dagster.api.open`.

    Methods share their arguments:

    * `product`: one (``"BTC-USD"``), several, or None for all stored ones.
    * `start`, `end`: the span ``[start, end)``, as text (``"2025-12-01T10:30"``), datetimes or Timestamps.
      Without a zone they are UTC. A day (``"2025-12-01"``) or an hour (``"2025-12-01T10"``) alone is that
      period. ``"-6h"`` counts back from the end. None is the beginning, or the end, of the stored data.
    * `columns`: columns beside time and product; only these are read. `describe` lists them.
    * `chain`: ``seconds``, or of the minutes ``minutes_h5`` and ``minutes_h15``. Bars and features do not
      depend on the horizon: there ``minutes`` will do.
    * `any_version`: also read files that other versions of the code wrote. Missing columns are null,
      and unknown columns are returned unchanged.

    Rows are in order of time, then product. The index of a frame is the time, in UTC; `product` is its first
    column. A bar, and what is computed from it, carries the bar's start; it is known at the bar's end.

    A partly recorded span returns its rows; `coverage` and `gaps` show the missing parts. Where nothing is
    stored, an `ApiError` names what exists. A file that cannot be read is a `LakeError`.

    Attributes:
        settings: the configuration the data were computed under.
        config_file: its file, where the market was opened by that.
    """

    settings: Settings
    config_file: Path | None
    _give: Callable[[pa.Table], Frame] = field(repr=False)

    @property
    def arrow(self) -> Market[pa.Table]:
        """The same market in Arrow: tables with the time first; fields contain unit and meaning."""
        return Market(self.settings, self.config_file, _as_it_is)

    @property
    def lake(self) -> Lake:
        """The files that the assets write."""
        return Lake(self.settings.storage.lake_dir)

    @cached_property
    def chains(self) -> dict[str, TimescaleSpec]:
        """Names of the chains: ``seconds``, ``minutes_h5`` and so on."""
        return timescale_specs(self.settings)

    def ticks(
        self, product: Products = None, start: Time = None, end: Time = None, *, columns: Columns = None
    ) -> Frame:
        """Return quotes: each usable message of the ticker channel once, by event time.

        Prices are in quote currency, sizes in base currency, `spread_bps` in basis points of the mid.
        """
        return self._give(self._query(TICKS, SECONDS, product, start, end, columns).table())

    def trades(
        self, product: Products = None, start: Time = None, end: Time = None, *, columns: Columns = None
    ) -> Frame:
        """Return trades by their own time; `side` is the taker's."""
        return self._give(self._query(TRADES, SECONDS, product, start, end, columns).table())

    def bars(
        self,
        product: Products = None,
        start: Time = None,
        end: Time = None,
        *,
        columns: Columns = None,
        chain: str = SECONDS,
    ) -> Frame:
        """Return bars on a regular grid, with prices, volume, log return, spread and flags.

        Prices of the seconds are mids, those of the minutes trades'. Unknown values are NaN (Arrow: null).
        """
        return self._give(self._query(BARS, chain, product, start, end, columns).table())

    def features(
        self,
        product: Products = None,
        start: Time = None,
        end: Time = None,
        *,
        columns: Columns = None,
        chain: str = SECONDS,
        any_version: bool = False,
    ) -> Frame:
        """Return the features at the end of each bar; `valid` is whether the row may be scored."""
        return self._give(self._query(FEATURES, chain, product, start, end, columns, any_version).table())

    def labels(
        self,
        product: Products = None,
        start: Time = None,
        end: Time = None,
        *,
        columns: Columns = None,
        chain: str = SECONDS,
        any_version: bool = False,
    ) -> Frame:
        """Return the volatility of the H bars after each bar, and of those up to it, in bps a bar."""
        return self._give(self._query(LABELS, chain, product, start, end, columns, any_version).table())

    def scores(
        self,
        product: Products = None,
        start: Time = None,
        end: Time = None,
        *,
        model: str | Path | None = None,
        chain: str = SECONDS,
    ) -> Frame:
        """Return the probability of a spike in the next H bars, computed now from stored features.

        `attrs` of the frame (metadata of an Arrow schema) contain the model, its operating point, and the end
        of its training: rows before that are not a test of it.

        Args:
            product: see `Market`, as `start`, `end` and `chain`.
            start: first time.
            end: end of the times.
            model: the champion (None), the name of an exported model (``"xgboost"``), or a model
                file (``….zip``). Where there is no champion, None is an exported model; `attrs` name it.
            chain: which horizon.

        Raises:
            InferError: there is no model, or it was trained on other features than are stored.
        """
        scorer = self._scorer(model, chain)
        parts = [part for _, part in self._scored(scorer, product, start, end, chain)]
        table = joined(parts, self._kind(SCORES, chain))
        return self._give(table.replace_schema_metadata(computed.described(scorer)))

    def coverage(
        self, product: Products = None, start: Time = None, end: Time = None, *, chain: str = SECONDS
    ) -> Frame:
        """Return the counts of each product in each hour (of the minutes: day), holes included."""
        measures = ["in_gap", "updates", "trades", "stale", "lossy"]
        bars = self._query(BARS, chain, product, start, end, measures, any_version=True)
        # "-6h" is back from the newest bar, not from the newest of each.
        features, labels = (
            replace(
                self._query(name, chain, None, None, None, columns, any_version=True),
                start_ns=bars.start_ns,
                end_ns=bars.end_ns,
            )
            for name, columns in ((FEATURES, ["valid"]), (LABELS, ["volatility_bps"]))
        )
        found = computed.coverage(bars, features, labels, self._spec(chain).partition_ns)
        return self._give(joined([to_table(found.reset_index())], self._kind(COVERAGE, chain)))

    def gaps(self, product: Products = None, start: Time = None, end: Time = None) -> Frame:
        """Return the known losses of the feed: the rows of the gap ledger that touch the span.

        A loss is a connection's, and so of every product that the connection carried. A span in which nobody
        recorded is answered too, between the first hour recorded and the last.
        """
        ticks = self._query(TICKS, SECONDS, product, start, end, None)
        ticks.require_recorded()
        found = computed.gaps(self.lake, (ticks.start_ns, ticks.end_ns), ticks.products)
        return self._give(joined([to_table(found.reset_index())], self._kind(GAPS, SECONDS)))

    def batches(
        self,
        kind: str,
        product: Products = None,
        start: Time = None,
        end: Time = None,
        *,
        columns: Columns = None,
        chain: str = SECONDS,
        any_version: bool = False,
        model: str | Path | None = None,
    ) -> Iterator[Frame]:
        """Yield the rows of a kind partition by partition, in order of time: a year need not fit in memory.

        Args:
            kind: ``"ticks"``, …, as the methods are called.
            product: see `Market`, as the other arguments.
            start: first time.
            end: end of the times.
            columns: the columns.
            chain: which timescale or horizon.
            any_version: also read files of other versions; all parts have the same columns nevertheless.
            model: of `scores`, and of no other kind.
        """
        of_kind = self._kind(kind, chain)
        if model is not None and kind != SCORES:
            raise ApiError(f"a model is for scores: {kind} are not computed by one")
        if kind not in (SCORES, COVERAGE, GAPS):
            query = self._query(kind, chain, product, start, end, columns, any_version)
            return (self._give(joined([part], of_kind)) for _, part in query.batches())
        names = _required(columns, of_kind)
        if kind == SCORES:
            scored = self._scored(self._scorer(model, chain), product, start, end, chain)
            tables = (joined([part], of_kind) for _, part in scored)
        elif kind == COVERAGE:
            tables = iter([self.arrow.coverage(product, start, end, chain=chain)])
        else:
            tables = iter([self.arrow.gaps(product, start, end)])
        return (self._give(table if names is None else of_kind.pick(table, names)) for table in tables)

    def partitions(
        self, kind: str, start: Time = None, end: Time = None, *, chain: str = SECONDS
    ) -> list[str]:
        """Return the stored hours (of the minutes: days) of a span, oldest first."""
        stored = {SCORES: FEATURES, COVERAGE: BARS, GAPS: TICKS}.get(kind, kind)
        return self._query(stored, chain, None, start, end, None).stored_partitions()

    def describe(self, kind: str | None = None, *, chain: str = SECONDS) -> pd.DataFrame:
        """Return unit and meaning of each column of a kind of rows; without a kind, of all but features."""
        if kind is not None:
            return self._kind(kind, chain).describe()
        names = [name for name in KINDS if name != FEATURES]
        return pd.concat({name: self._kind(name, chain).describe() for name in names}, names=["kind"])

    def stored(self) -> pd.DataFrame:
        """Return a row an asset that is read here: how many partitions it has, the first and the last."""
        specs = self.chains.values()
        names = (TICKS, TRADES, *(spec.asset(kind) for kind in (BARS, FEATURES, LABELS) for spec in specs))
        keys = {name: self.lake.partitions(name) for name in dict.fromkeys(names)}
        return pd.DataFrame(
            {
                "partitions": [len(found) for found in keys.values()],
                "first": [found[0] if found else "" for found in keys.values()],
                "last": [found[-1] if found else "" for found in keys.values()],
            },
            index=pd.Index(keys, name="asset"),
        )

    def served_by(self) -> dict[str, int]:
        """Count the recorded connections by server: ``cryptovol-simulator`` is not a real market."""
        return RawStore(self.settings.storage.raw_dir).servers()

    def study(self, as_of: str | None = None, *, chain: str = SECONDS) -> Study:
        """Return the training data as of a partition, with numbers and pictures.

        Args:
            as_of: an hour (``"2025-12-01-17:00"``) or, of the minutes, a day; the newest with labels by
                default.
            chain: which horizon.

        Raises:
            LearningError: no row has both features and a label.
        """
        from cryptovol_dagster.api.study import Study

        query = self._query(LABELS, chain, None, None, None, None)
        return Study(self.settings, self._spec(chain), as_of or query.partitions()[-1])

    def _query(
        self,
        name: str,
        chain: str,
        product: Products,
        start: Time,
        end: Time,
        columns: Columns,
        any_version: bool = False,
    ) -> Query:
        spec, kind = self._spec(chain, of_grid=name in (BARS, FEATURES)), self._kind(name, chain)
        names = _required(columns, kind, any_version=any_version)
        asset = name if name in (TICKS, TRADES) else spec.asset(name)
        newest = partial(newest_time, self.lake, kind, asset, spec)
        start_ns, end_ns = parse_span(start, end, newest)
        return Query(
            lake=self.lake,
            kind=kind,
            asset=asset,
            reach_ns=spec.horizon_ns if name == LABELS else 0,
            start_ns=start_ns,
            end_ns=end_ns,
            products=_listed(product),
            names=names,
            any_version=any_version,
            verb=self._verb,
        )

    def _spec(self, chain: str, *, of_grid: bool = False) -> TimescaleSpec:
        """Return the chain of a name; for shared assets of horizons, any chain of the timescale."""
        if chain in self.chains:
            return self.chains[chain]
        on_grid = [name for name, spec in self.chains.items() if spec.grid == chain]
        if on_grid and of_grid:
            return self.chains[on_grid[0]]
        if on_grid:
            raise ApiError(f"{chain} have several horizons: chain={' or '.join(map(repr, on_grid))}")
        raise ApiError(
            f"{chain!r} is not a chain: {', '.join(self.chains)}.{did_you_mean(chain, self.chains)}"
        )

    def _kind(self, name: str, chain: str) -> Kind:
        return kind_of(name, self._spec(chain, of_grid=name != LABELS))

    def _scorer(self, model: str | Path | None, chain: str) -> Scorer:
        storage = self.settings.storage
        reports = Reports(storage.reports_dir, storage.artifacts_dir)
        return computed.scorer_of(self.lake, self._spec(chain), reports, model)

    def _scored(
        self, scorer: Scorer, product: Products, start: Time, end: Time, chain: str
    ) -> Iterator[tuple[str, pa.Table]]:
        # Any version: the scorer compares that of the rows with that of the model.
        query = self._query(FEATURES, chain, product, start, end, None, any_version=True)
        return computed.score_partitions(query, scorer)

    def _verb(self, verb: str) -> str:
        """Write a command that works on this market."""
        chosen = f"--config {os.path.relpath(self.config_file)} " if self.config_file else ""
        return f"cryptovol {chosen}{verb}"


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return a table as a frame: its first column, the time, is the index, its metadata are `attrs`."""
    # Not `set_index`, which copies the frame.
    index = pd.DatetimeIndex(table.column(0).to_pandas(), name=table.column_names[0])
    frame = table.remove_column(0).to_pandas(ignore_metadata=True)
    frame.index = index
    frame.attrs = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return frame


def _as_it_is(table: pa.Table) -> pa.Table:
    return table


def _required(columns: Columns, kind: Kind, *, any_version: bool = False) -> list[str] | None:
    """Return the names of the requested columns, after the check that the kind has them; None means all.

    Raises:
        ApiError: there is no such column, or the names are not a list.
    """
    if isinstance(columns, str):
        raise ApiError(f"columns is a list: columns=[{columns!r}]")
    if columns is not None and not any_version:
        kind.require(columns, [column.name for column in kind.columns])
    return None if columns is None else list(columns)


def _listed(product: Products) -> tuple[str, ...] | None:
    if product is None:
        return None
    products = (product,) if isinstance(product, str) else tuple(dict.fromkeys(product))
    if not products:
        raise ApiError('no product is named: product=None means all, product="BTC-USD" one')
    return tuple(sorted(products))
