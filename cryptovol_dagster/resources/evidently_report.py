"""The train-vs-test report: Evidently behind a schema check, on a bounded sample.

Evidently lets a missing column pass in silence and raises from deep inside on an all-null column or an
empty frame, so what it is given is checked here first. It is imported inside, because the import alone
takes 10–20 s.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class EvidentlyError(Exception):
    """The frames cannot be compared; the message is one line."""


@dataclass(frozen=True)
class TrainTestReport:
    """The finished report.

    Attributes:
        html: the page people open.
        json: the same as data.
        columns: the columns compared.
        left_out: columns without a single value on one side (a feed without trades has no trade features).
        drifted: columns that Evidently's default test flags. These tests assume independent rows, which
            seconds of a market are not, so this is a description and no alarm.
        rows_train: rows compared, after sampling.
        rows_test: rows compared, after sampling.
    """

    html: bytes
    json: bytes
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    drifted: tuple[str, ...]
    rows_train: int
    rows_test: int


def train_test_report(
    train: pd.DataFrame, test: pd.DataFrame, *, max_rows: int, seed: int
) -> TrainTestReport:
    """Compare the distribution of every numeric column in training and test.

    Args:
        train: reference rows, one column a feature.
        test: current rows, the same columns in the same order.
        max_rows: each side is sampled to this many rows (time order kept).
        seed: of the sampling.

    Raises:
        EvidentlyError: the columns differ, a column is not numeric, or a side is empty.
    """
    _validate(train, test)
    empty = {*train.columns[train.isna().all()], *test.columns[test.isna().all()]}
    columns = [str(name) for name in train.columns if name not in empty]
    left_out = tuple(str(name) for name in train.columns if name in empty)
    if not columns:
        raise EvidentlyError("train-vs-test report: no column has a value in both training and test")
    reference, current = (_sample(frame.loc[:, columns], max_rows, seed) for frame in (train, test))

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, DataSummaryPreset

    definition = DataDefinition(numerical_columns=columns)
    snapshot = Report([DataSummaryPreset(), DataDriftPreset()]).run(
        Dataset.from_pandas(current, data_definition=definition),
        Dataset.from_pandas(reference, data_definition=definition),
    )
    body = snapshot.dict()
    return TrainTestReport(
        html=_html(snapshot),
        json=json.dumps(body, default=str).encode(),
        columns=tuple(columns),
        left_out=left_out,
        drifted=_drifted(body),
        rows_train=len(reference),
        rows_test=len(current),
    )


def _validate(train: pd.DataFrame, test: pd.DataFrame) -> None:
    for name, frame in (("training", train), ("test", test)):
        if frame.empty:
            raise EvidentlyError(f"train-vs-test report: {name} has no rows")
        text = [column for column in frame.columns if frame[column].dtype.kind not in "fiub"]
        if text:
            raise EvidentlyError(f"train-vs-test report: not numeric in {name}: {', '.join(text)}")
    if list(train.columns) != list(test.columns):
        differing = sorted(set(train.columns) ^ set(test.columns)) or ["(order)"]
        raise EvidentlyError(
            f"train-vs-test report: training and test differ in columns: {', '.join(differing)}"
        )


def _sample(frame: pd.DataFrame, max_rows: int, seed: int) -> pd.DataFrame:
    if len(frame) <= max_rows:
        return frame
    return frame.sample(n=max_rows, random_state=seed).sort_index()


def _html(snapshot: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        snapshot.save_html(str(path))
        return path.read_bytes()


def _drifted(body: dict[str, Any]) -> tuple[str, ...]:
    """Read the flagged columns from the report: a p-value under its threshold or a distance over it."""
    flagged = []
    for metric in body["metrics"]:
        config = metric.get("config", {})
        if not str(config.get("type", "")).endswith("ValueDrift"):
            continue
        value, threshold = float(metric["value"]), float(config["threshold"])
        is_p_value = "p_value" in str(config.get("method", ""))
        if value < threshold if is_p_value else value >= threshold:
            flagged.append(str(config["column"]))
    return tuple(flagged)
