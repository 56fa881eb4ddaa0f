"""`cryptovol infer`: scores of features, and a benchmark of scoring."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptovol_dagster.verbs.options import chain_option, json_option
from ingestor.settings import load_settings
from ingestor.verbs.output import print_table

if TYPE_CHECKING:
    import pandas as pd

    from cryptovol_dagster.core.specs import TimescaleSpec
    from cryptovol_dagster.inference.scorer import FeatureRows, Scorer

#: Number of flagged rows that the text of `--why` shows.
_WHY_ROWS = 10


@click.command()
@click.option(
    "--model",
    "name",
    metavar="NAME",
    help="champion, or the name of an exported model, e.g. xgboost (default: the champion, else an exported "
    "model; the output names it).",
)
@click.option(
    "--model-path",
    type=click.Path(path_type=Path),
    help="A model file (.zip), instead of --model.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Features as `replay --out` or `featurize` write them, .parquet (file or folder), or a .csv of just "
    "the model's columns (default: the newest hour, of the minutes the newest day, in the lake).",
)
@click.option("--out", type=click.Path(path_type=Path), help="Write every row's score to .parquet or .csv.")
@click.option(
    "--why",
    is_flag=True,
    help="Also show the five features that moved the probability of each flagged row most. --out and --json "
    "have every flagged row, the text the newest ten.",
)
@click.option("--benchmark", is_flag=True, help="Measure calls of 1 to 1,000 rows by back end instead.")
@chain_option
@json_option
def infer(
    name: str | None,
    model_path: Path | None,
    features: Path | None,
    out: Path | None,
    why: bool,
    benchmark: bool,
    chain_name: str,
    as_json: bool,
) -> None:
    """Score features: the probability that the volatility of the next horizon is a spike.

    Prints each product's newest row: probability, flag at the operating point that was chosen on validation,
    and how old the row is. A row that its features call invalid gets no prediction, and the reason instead.

    --why explains flags: for each flagged row the five features with the greatest share in its log-odds,
    their value and their meaning. A share above 0 made a spike more likely. The shares of all features add up
    to the probability exactly.

    --benchmark times a call of the model by back end (onnxruntime among them) and number of rows, and, of the
    seconds, the way of one bar from ticks to probabilities. Before any number, every back end must say the
    same of every row.

    \b
    Examples:
      cryptovol infer                                     the champion on the newest hour
      cryptovol infer --model xgboost --json              an exported model, for scripts
      cryptovol infer --model-path models/artifacts/seconds-ewma.zip --features features.parquet
      cryptovol replay --out features.parquet             then, on its output:
      cryptovol infer --features features.parquet --out scores.csv
      cryptovol infer --why                               and why rows were flagged
      cryptovol infer --chain minutes_h5                  the champion of a horizon, on the newest day
      cryptovol infer --benchmark                         p50, p90 and p99 of a call, by back end
    """
    from cryptovol_dagster.chains import spec_of
    from cryptovol_dagster.inference import scorer as inference
    from cryptovol_dagster.lake.files import Lake
    from cryptovol_dagster.lake.latest import Reports

    _require_valid_options(name, model_path, out, why, benchmark)
    settings = load_settings().settings
    storage = settings.storage
    lake = Lake(storage.lake_dir)
    spec = spec_of(settings, chain_name)
    reports = Reports(storage.reports_dir, storage.artifacts_dir)
    scorer = inference.find_scorer(lake, spec, reports, name=name, path=model_path)
    rows = inference.read_features(lake, spec, features)
    body = _source(scorer, rows, spec)
    if benchmark:
        from cryptovol_dagster.inference.benchmark import measure

        body["benchmark"] = measure(rows, scorer, spec)
        if as_json:
            click.echo(json.dumps(body))
        else:
            _print_benchmark(body)
        return
    scores = inference.score(rows, scorer, why=why)
    body |= _summary(scores, spec.bar_interval_s)
    if why:
        body["why"] = _why(scores, spec.bar_interval_s)
    if out is not None:
        _write(scores, out)
        body["out"] = str(out)
    click.echo(json.dumps(body, allow_nan=False) if as_json else _text(body))


def _require_valid_options(
    name: str | None, model_path: Path | None, out: Path | None, why: bool, benchmark: bool
) -> None:
    """Check options that exclude each other, and the ending of `--out`.

    Raises:
        UsageError: an option does not go with another one.
    """
    if name is not None and model_path is not None:
        raise click.UsageError("--model and --model-path exclude each other")
    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise click.UsageError(f"--out {out}: scores are written as .parquet or .csv")
    if out is not None and benchmark:
        raise click.UsageError("--benchmark writes no scores: omit --out")
    if why and benchmark:
        raise click.UsageError("--benchmark flags no rows: omit --why")


def _source(scorer: Scorer, rows: FeatureRows, spec: TimescaleSpec) -> dict[str, Any]:
    """Return which model scores which rows."""
    return {
        "model": scorer.version,
        "source": scorer.source,
        "features": rows.source,
        "feature_version": scorer.model.meta.feature_hash,
        "chain": spec.name,
        "horizon_s": scorer.model.meta.horizon_s,
        "operating_point": scorer.threshold,
    }


def _summary(scores: pd.DataFrame, bar_interval_s: int) -> dict[str, Any]:
    return {
        "rows": len(scores),
        "scored": int(scores["probability"].notna().sum()),
        "flagged": int(scores["flag"].fillna(False).sum()),
        "latest": _latest(scores, bar_interval_s),
    }


def _latest(scores: pd.DataFrame, bar_interval_s: int) -> list[dict[str, Any]]:
    """Return the newest row of each product; its age counts from the end of its bar."""
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


def _why(scores: pd.DataFrame, bar_interval_s: int) -> list[dict[str, Any]]:
    """Return the contributions of each flagged row, in order of time."""
    import pandas as pd

    from cryptovol_dagster.core.features.meanings import meaning
    from cryptovol_dagster.core.models.contributions import SHOWN

    found = []
    for row in scores.loc[scores["flag"].fillna(False)].to_dict("records"):
        shares = [
            {
                "feature": row[f"why_{rank}_feature"],
                "meaning": meaning(row[f"why_{rank}_feature"], bar_interval_s),
                "value": None if pd.isna(row[f"why_{rank}_value"]) else row[f"why_{rank}_value"],
                "log_odds": row[f"why_{rank}_log_odds"],
            }
            for rank in range(1, SHOWN + 1)
            if not pd.isna(row[f"why_{rank}_feature"])
        ]
        end = row["bar_start"] + timedelta(seconds=bar_interval_s)
        bar = {"product": row["product"], "bar_end": end.isoformat(), "probability": row["probability"]}
        found.append({**bar, "contributions": shares})
    return found


def _write(scores: pd.DataFrame, out: Path) -> None:
    from cryptovol_dagster.inference.scorer import InferError
    from cryptovol_dagster.lake.atomic import replace_file

    content = scores.to_csv(index=False).encode() if out.suffix == ".csv" else scores.to_parquet()
    try:
        replace_file(out, content)
    except OSError as error:
        raise InferError(f"{out}: cannot be written: {error.strerror or error}") from error


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
    lines += _why_text(body["why"]) if "why" in body else []
    return "\n".join(lines if "out" not in body else [*lines, f"written  {body['out']}"])


def _why_text(why: list[dict[str, Any]]) -> list[str]:
    """Return the lines on the newest flagged rows, the newest last."""
    if not why:
        return ["why      no row is flagged"]
    shown = why[-_WHY_ROWS:]
    lines = [
        f"why      {len(shown)} of {len(why):,} flagged rows, the newest; log-odds that each feature adds, "
        "its value and meaning"
    ]
    for row in shown:
        lines.append(f"{row['product']:<9}{row['probability']:.4f}  bar end {row['bar_end']}")
        for share in row["contributions"]:
            value = "unknown" if share["value"] is None else f"{share['value']:.4g}"
            lines.append(f"{share['log_odds']:>+9.3f}  {share['feature']} = {value}: {share['meaning']}")
    return lines


def _print_benchmark(body: dict[str, Any]) -> None:
    found = body["benchmark"]
    machine = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine.items() if name != "cpu")
    for line in (*_head(body), f"machine  {machine['cpu']}; {versions}"):
        click.echo(line)
    for name, parity in found["parity"].items():
        said = f"|Δp| at most {parity['max_difference']:.1g} on {parity['rows']:,} rows"
        if body["operating_point"] is not None:
            said += ", the same flags"
        click.echo(f"parity   {name}: {said}")
    calls = [_call(call["backend"], call["rows"], call) for call in found["calls"]]
    live = found["live"]
    if live is not None:
        calls.append(_call("ticks of a bar → p", round(live["rows_a_bar"]), live))
    call = "a call of the model"
    print_table((call, "rows", "calls", "p50 ms", "p90 ms", "p99 ms"), calls, words=(call,))
    if live is None:
        click.echo("live rows of this chain lack columns of the model: the path of a bar was not timed")
    verdict = "within" if found["within_target"] else "ABOVE"
    click.echo(f"{verdict} the target: one row by onnxruntime, p99 at most {found['target_ms']:g} ms")


def _call(name: str, rows: int, numbers: dict[str, Any]) -> list[str]:
    times = (f"{numbers[key]:.4f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
    return [name, str(rows), str(numbers["calls"]), *times]
