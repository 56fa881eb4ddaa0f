"""`cryptovol infer`: probabilities of features, now and as fast as the machine gives them."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.verbs.options import json_option
from ingestor.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from cryptovol_dagster.resources.inference import FeatureRows, Scorer

BATCHES = (1, 100, 1_000)
#: A model that takes longer than two bars for the rows of one cannot follow the market.
TARGET_BARS = 2
_BENCHMARK_LINE = "{:>6} {:>6} {:>9} {:>9} {:>9} {:>9} {:>13}"
_BENCHMARK_S, _LEAST_CALLS, _MOST_CALLS = 1.0, 20, 2_000


@click.command()
@click.option(
    "--model",
    "name",
    metavar="NAME",
    help="champion, or the name of an exported model, e.g. xgboost (default: the champion, else an exported "
    "model; the output says which).",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="A model file (.zip), instead of --model.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Features as `replay` or `featurize` write them, .parquet (file or folder) or .csv (default: the "
    "newest hour in the lake).",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write every row's score to .parquet or .csv.")
@click.option("--benchmark", is_flag=True, help="Measure calls of 1, 100 and 1,000 rows instead.")
@json_option
def infer(
    name: str | None,
    model_path: Path | None,
    features: Path | None,
    out: Path | None,
    benchmark: bool,
    as_json: bool,
) -> None:
    """Score features: the probability that the next minute is one of the market's violent ones.

    Prints each product's newest row: probability, flag at the operating point that was chosen on validation,
    and how old the row is. A row that its features call invalid gets no prediction, and the reason instead.

    \b
    Examples:
      cryptovol infer                                     the champion on the newest hour
      cryptovol infer --model xgboost --json              an exported model, for scripts
      cryptovol infer --model-path models/artifacts/seconds-ewma.zip --features features.parquet
      cryptovol infer --features features.parquet --out scores.csv
      cryptovol infer --benchmark                         p50, p90 and p99 of a call
    """
    from cryptovol_dagster.resources import inference
    from cryptovol_dagster.resources.lake import Lake
    from cryptovol_dagster.resources.reports import Reports
    from cryptovol_dagster.resources.specs import timescale_spec

    if name is not None and model_path is not None:
        raise click.UsageError("--model and --model-path exclude each other")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise click.UsageError(f"--out {out}: scores are written as .parquet or .csv")
    if out is not None and benchmark:
        raise click.UsageError("--benchmark writes no scores: leave out --out")
    settings = load_settings().settings
    storage = settings.storage
    lake = Lake(storage.lake_dir)
    spec = timescale_spec(settings.timescales.seconds, "seconds")
    reports = Reports(storage.reports_dir, storage.artifacts_dir)
    scorer = inference.find_scorer(lake, spec, reports, name=name, path=model_path)
    rows = inference.read_features(lake, spec, features)
    body: dict[str, Any] = {
        "model": scorer.version,
        "source": scorer.source,
        "features": rows.source,
        "feature_version": scorer.model.meta.feature_hash,
        "horizon_s": scorer.model.meta.horizon_s,
        "operating_point": scorer.threshold,
    }
    if benchmark:
        body["benchmark"] = measure(rows, scorer, spec.bar_interval_s)
        click.echo(json.dumps(body) if as_json else _benchmark_text(body))
        return
    scores = inference.score(rows, scorer)
    body["rows"] = len(scores)
    body["scored"] = int(scores["probability"].notna().sum())
    body["flagged"] = int(scores["flag"].fillna(False).sum())
    body["latest"] = _latest(scores, spec.bar_interval_s)
    if out is not None:
        _write(scores, out)
        body["out"] = str(out)
    click.echo(json.dumps(body, allow_nan=False) if as_json else _text(body))


def _latest(scores: pd.DataFrame, bar_interval_s: int) -> list[dict[str, Any]]:
    """Give the newest row of each product; its age counts from the end of its bar."""
    import pandas as pd

    newest = scores.groupby("product").tail(1).sort_values("product")
    now_s = time.time()
    found = []
    for row in newest.to_dict("records"):
        end = row["bar_start"] + timedelta(seconds=bar_interval_s)
        found.append(
            {
                "product": row["product"],
                "bar_end": end.isoformat(),
                "probability": float(row["probability"]) if row["reason"] == "ok" else None,
                "flag": None if pd.isna(row["flag"]) else bool(row["flag"]),
                "reason": row["reason"],
                "age_s": round(now_s - end.timestamp(), 1),
            }
        )
    return found


def _write(scores: pd.DataFrame, out: Path) -> None:
    from cryptovol_dagster.resources.inference import InferError
    from cryptovol_dagster.resources.lake import replace_file

    content = scores.to_csv(index=False).encode() if out.suffix == ".csv" else scores.to_parquet()
    try:
        replace_file(out, content)
    except OSError as error:
        raise InferError(f"{out}: cannot be written: {error.strerror or error}") from error


def measure(rows: FeatureRows, scorer: Scorer, bar_interval_s: int) -> dict[str, Any]:
    """Time calls of the model on rows of features; making the features is not part of it.

    The same numbers on another machine are others. What carries over is `against_numpy`: the median call over
    the median of the least that any model must do with as many rows on this machine, a frame turned into a
    matrix, a weighted sum and a logistic function in NumPy.

    Raises:
        InferError: no row may be scored, or the rows are of another feature set.
        ModelError: a column is missing or unknown.
    """
    import numpy as np
    import pandas as pd

    from cryptovol_dagster.resources.inference import InferError, inputs_of

    valid = inputs_of(rows, scorer).loc[rows.frame["valid"].to_numpy(dtype=bool)]
    if valid.empty:
        raise InferError(f"{rows.source}: no row may be scored, so there is nothing to measure")
    weights = np.full(valid.shape[1], 0.01)
    found = []
    for batch in BATCHES:
        repeated = [valid] * -(-batch // len(valid))
        frame = pd.concat(repeated, ignore_index=True).head(batch)
        calls = _time_calls(lambda frame=frame: scorer.model.predict_proba(frame))
        plain = _time_calls(lambda frame=frame: 1 / (1 + np.exp(-frame.to_numpy(dtype=np.float64) @ weights)))
        p50, p90, p99 = np.quantile(calls, [0.5, 0.9, 0.99])
        found.append(
            {
                "rows": batch,
                "calls": len(calls),
                "p50_ms": p50 * 1e3,
                "p90_ms": p90 * 1e3,
                "p99_ms": p99 * 1e3,
                "against_numpy": float(p50 / np.median(plain)),
                "share_of_target": p99 / (TARGET_BARS * bar_interval_s),
            }
        )
    return {"valid_rows": len(valid), "target_s": TARGET_BARS * bar_interval_s, "batches": found}


def _time_calls(call: Callable[[], Any]) -> list[float]:
    for _ in range(3):
        call()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < _MOST_CALLS:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= _LEAST_CALLS and time.perf_counter() - began > _BENCHMARK_S:
            break
    return seconds


def _head(body: dict[str, Any]) -> list[str]:
    return [f"model    {body['model']} ({body['source']})", f"features {body['features']}"]


def _text(body: dict[str, Any]) -> str:
    point = body["operating_point"]
    known = (
        "none stored for this model: no flags" if point is None else f"probability of at least {point:.3f}"
    )
    lines = [
        *_head(body),
        f"flag     {known}",
        f"rows     {body['rows']:,}, {body['scored']:,} scored, {body['flagged']:,} flagged",
    ]
    for row in body["latest"]:
        if row["probability"] is None:
            said = f"no prediction ({row['reason']})"
        else:
            flag = {None: "", True: "  SPIKE", False: "  calm"}[row["flag"]]
            said = f"{row['probability']:.4f}{flag}"
        lines.append(f"{row['product']:<9}{said}  bar end {row['bar_end']}, {row['age_s']:,.0f} s ago")
    return "\n".join(lines if "out" not in body else [*lines, f"written  {body['out']}"])


def _benchmark_text(body: dict[str, Any]) -> str:
    found = body["benchmark"]
    lines = [
        *_head(body),
        f"a call of the model, features not included; target: {found['target_s']} s for the rows of a bar",
        _BENCHMARK_LINE.format("rows", "calls", "p50 ms", "p90 ms", "p99 ms", "× NumPy", "p99 / target"),
    ]
    for one in found["batches"]:
        numbers = (one["p50_ms"], one["p90_ms"], one["p99_ms"])
        lines.append(
            _BENCHMARK_LINE.format(
                one["rows"],
                one["calls"],
                *(f"{number:.3f}" for number in numbers),
                f"{one['against_numpy']:.1f}",
                f"{one['share_of_target']:.5f}",
            )
        )
    return "\n".join(lines)
