"""The labelled rows of a trailing window: joined hour by hour, and kept for the next window that needs them.

Splits, every model, evaluation and report of an hour learn from the same rows, and the next hour from nearly
the same. So each pair of files (an hour's labels, the features they speak of) is read and joined once. A
window is a view of the cached rows, or one copy of them when hours are added and removed at its ends.

Belongs here: reading, joining and caching. Does not belong here: the choice of windows, and learning.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from cryptovol_dagster.core.learning.dataset import Dataset, concatenate, join_rows, no_rows
from cryptovol_dagster.core.learning.labels import rows_labelled_by
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window, partitions_between
from cryptovol_dagster.lake.files import FileState, Lake


@dataclass(frozen=True)
class _Files:
    """The states of an hour's features and of their labels, which may be in a later hour."""

    features: FileState
    labels: FileState


@dataclass(frozen=True)
class _Piece:
    """The rows joined from a pair of files.

    Attributes:
        rows: in order of time; a view once they are kept.
        digest: of every value in them.
        features_read: rows of the features that the labels speak of.
        labels_read: rows of the labels that speak of the features.
    """

    rows: Dataset
    digest: bytes
    features_read: int
    labels_read: int


@dataclass
class _Kept:
    """Pieces in order of time, the dataset that they are views of, and the windows returned from it."""

    pieces: dict[_Files, _Piece] = field(default_factory=dict)
    dataset: Dataset | None = None
    given: dict[tuple[_Files, ...], tuple[Dataset, str]] = field(default_factory=dict)


#: One window at most: a week of two products is hundreds of megabytes.
_KEPT: dict[tuple[Lake, TimescaleSpec], _Kept] = {}


def read_rows(lake: Lake, spec: TimescaleSpec, start_ns: int, end_ns: int) -> tuple[Dataset, str]:
    """Join the features and labels of the hours in a window, as far as they were written.

    Args:
        lake: the lake with features and labels.
        spec: the timescale.
        start_ns: of the first hour.
        end_ns: of the last hour, exclusive.

    Returns:
        The rows of one join over all these hours, and a digest of every value in them.

    Raises:
        LakeError: a file cannot be read.
        LearningError: no row has both features and a label.
    """
    assets = spec.asset("features"), spec.asset("labels")
    features, labels = (
        {state[0]: state for state in lake.fingerprint(asset, start_ns, end_ns)} for asset in assets
    )
    wanted = tuple(
        _Files(features[hour], state)
        for state in labels.values()
        for hour in partitions_between(
            *rows_labelled_by(*partition_window(state[0]), spec), spec.partition_ns
        )
        if hour in features
    )
    kept = _KEPT.get((lake, spec), _Kept())
    if wanted not in kept.given:
        if not _is_run_of(wanted, kept.pieces):
            kept = _rebuilt(lake, spec, wanted, kept)
            _KEPT.clear()
            _KEPT[lake, spec] = kept
        totals = (
            sum(_row_count(lake, asset, state) for state in states.values())
            for asset, states in zip(assets, (features, labels), strict=True)
        )
        kept.given[wanted] = _window(kept, wanted, *totals)
    return kept.given[wanted]


def _is_run_of(wanted: tuple[_Files, ...], pieces: dict[_Files, _Piece]) -> bool:
    """Return whether the requested pieces are cached, one after the other."""
    if not wanted or wanted[0] not in pieces:
        return False
    keys = list(pieces)
    first = keys.index(wanted[0])
    return tuple(keys[first : first + len(wanted)]) == wanted


def _rebuilt(lake: Lake, spec: TimescaleSpec, wanted: tuple[_Files, ...], before: _Kept) -> _Kept:
    """Join pieces that are not cached yet, concatenate all, and drop pieces that are no longer needed."""
    pieces = {files: before.pieces[files] for files in wanted if files in before.pieces}
    new = [files for files in wanted if files not in pieces]
    with ThreadPoolExecutor(1) as reader:
        features = _Ahead(reader, lake, spec.asset("features"), [files.features for files in new])
        labels = _Ahead(reader, lake, spec.asset("labels"), [files.labels for files in new])
        for files in new:
            pieces[files] = _join(features.read(files.features), labels.read(files.labels), files, spec)
    pieces = {files: pieces[files] for files in wanted}
    filled = [piece.rows for piece in pieces.values() if len(piece.rows)]
    if not filled:
        return _Kept(pieces)
    dataset = concatenate(filled, {})
    at = 0
    for files, piece in pieces.items():
        view = dataset.slice(at, at + len(piece.rows))
        pieces[files] = replace(piece, rows=replace(view, dropped=piece.rows.dropped))
        at += len(view)
    return _Kept(pieces, dataset)


class _Ahead:
    """Files read in the order of their use, each while the one before is processed.

    Args:
        reader: reads them.
        lake: where they are.
        asset: the asset of the files.
        states: in the order of use. Labels of a partition refer to as long a span of features, so these
            are used in order of time, too, though often twice in a row.
    """

    def __init__(self, reader: Executor, lake: Lake, asset: str, states: Iterable[FileState]) -> None:
        self._coming = deque[tuple[FileState, Future[pd.DataFrame]]]()
        self._reader, self._lake, self._asset = reader, lake, asset
        self._states = iter(dict.fromkeys(states))
        self._at: FileState | None = None
        self._frame = pd.DataFrame()
        self._ask()

    def read(self, state: FileState) -> pd.DataFrame:
        """Return a file's rows: those returned last, or the next ones.

        Raises:
            LakeError: it cannot be read.
            ValueError: it is not the next file.
        """
        if state != self._at:
            at, frame = self._coming.popleft()
            if state != at:
                raise ValueError(f"{state[0]} was requested, {at[0]} is next")
            self._at, self._frame = at, frame.result()
            self._ask()
        return self._frame

    def _ask(self) -> None:
        state = next(self._states, None)
        if state is not None:
            self._coming.append((state, self._reader.submit(_read, self._lake, self._asset, state)))


def _read(lake: Lake, asset: str, state: FileState) -> pd.DataFrame:
    return lake.read_table(asset, *partition_window(state[0])).to_pandas()


def _join(features: pd.DataFrame, labels: pd.DataFrame, files: _Files, spec: TimescaleSpec) -> _Piece:
    """Join the part of an hour's features that the labels speak of with the labels of that hour."""
    first_ns, stop_ns = partition_window(files.features[0])
    from_ns, to_ns = rows_labelled_by(*partition_window(files.labels[0]), spec)
    features = between(features, max(first_ns, from_ns), min(stop_ns, to_ns))
    labels = between(labels, first_ns, stop_ns)
    rows = join_rows(features, labels, spec)
    return _Piece(rows, _digest(rows), len(features), len(labels))


def between(frame: pd.DataFrame, start_ns: int, end_ns: int) -> pd.DataFrame:
    """Return the rows of a frame whose bars start in ``[start_ns, end_ns)``."""
    start, end = (pd.Timestamp(ns, unit="ns", tz="UTC") for ns in (start_ns, end_ns))
    inside = (frame["bar_start"] >= start) & (frame["bar_start"] < end)
    return frame if inside.all() else frame.loc[inside]


def _window(
    kept: _Kept, wanted: tuple[_Files, ...], features_total: int, labels_total: int
) -> tuple[Dataset, str]:
    """Return a window of the cached rows, with counts of dropped rows.

    Raises:
        LearningError: no row is left.
    """
    pieces = [kept.pieces[files] for files in wanted]
    dropped = Counter(
        label_missing=features_total - sum(piece.features_read for piece in pieces),
        feature_missing=labels_total - sum(piece.labels_read for piece in pieces),
    )
    for piece in pieces:
        dropped.update(piece.rows.dropped)
    counts = {reason: count for reason, count in sorted(dropped.items()) if count}
    length = sum(len(piece.rows) for piece in pieces)
    if not length or kept.dataset is None:
        raise no_rows(counts)
    first = 0
    for files, piece in kept.pieces.items():
        if files == wanted[0]:
            break
        first += len(piece.rows)
    rows = replace(kept.dataset.slice(first, first + length), dropped=counts)
    digest = hashlib.blake2b(b"".join(piece.digest for piece in pieces if len(piece.rows)), digest_size=8)
    return rows, digest.hexdigest()


def _digest(rows: Dataset) -> bytes:
    """Return a digest of every row: keys, both σ and features, in order."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update("\n".join([*rows.features.columns, *rows.products]).encode())
    codes, _ = pd.factorize(rows.product, sort=True)
    by_column = rows.features.to_numpy().T  # in one piece: column after column, as if each were taken alone
    for array in (rows.t_ns, codes.astype(np.int64), rows.sigma, rows.trailing_sigma, by_column):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


@lru_cache(maxsize=1_000)
def _row_count(lake: Lake, asset: str, state: FileState) -> int:
    """Count the rows of a file that is in this state."""
    return lake.count_rows(asset, state[0])
