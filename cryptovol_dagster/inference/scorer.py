"""Features in, probabilities out: which model, which rows, and where it flags.

Belongs here: finding the model and its operating point, reading features however they were written, and
refusing combinations that do not match. The display is the verb's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.learning.dataset import KEY_COLUMNS
from cryptovol_dagster.core.models.contributions import SHOWN, top_contributions
from cryptovol_dagster.core.models.kinds import FIRST_CHAMPIONS
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.core.times import partition_window, partitions_between
from cryptovol_dagster.lake import decisions, look_back, plans
from cryptovol_dagster.lake.files import Lake, meaning_of
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.lake.operating_points import Flagging, flagging_of
from ingestor.errors import CryptovolError, did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cryptovol_dagster.core.metrics.episodes import EpisodeRule
    from cryptovol_dagster.core.models import Model
    from cryptovol_dagster.core.models.base import ModelMeta

CHAMPION = "champion"
#: Metadata key of the version of own features that `cryptovol featurize` writes.
_LIVE_VERSION_KEY = b"cryptovol_feature_version"
#: Columns of live rows that are not features.
_LIVE_COLUMNS = ("revision", "provisional")


class InferError(CryptovolError):
    """There is nothing to score, or nothing to score it with; the message is one line."""


@dataclass(frozen=True)
class Scorer:
    """A model and where it flags.

    Attributes:
        model: fitted.
        source: where it was found, in words.
        version: kind, as-of time and registry version, as far as known.
        threshold: of the operating point chosen on validation (highest F1); None where none is stored.
        episode_rule: chosen on the same rows; None where none is stored.
    """

    model: Model
    source: str
    version: str
    threshold: float | None
    episode_rule: EpisodeRule | None = None


@dataclass(frozen=True)
class FeatureRows:
    """Features to score.

    Attributes:
        frame: `KEY_COLUMNS` and a column a feature.
        source: the file or partition.
        version: of the feature set, where the file has one.
        reference_set: products whose means the cross features are; empty where there are none.
    """

    frame: pd.DataFrame
    source: str
    version: str | None
    reference_set: tuple[str, ...] = ()


def find_scorer(
    lake: Lake, spec: TimescaleSpec, reports: Reports, *, name: str | None, path: Path | None
) -> Scorer:
    """Find a model: a file, the champion, or an exported one by name; by default the champion.

    Without a champion the default is an exported model, of the kinds that may be the first champion before
    others; its `source` names it.

    Raises:
        InferError: there is none, or it is another chain's.
        ModelError: the file is not a model file.
        DecisionError: the newest decision cannot be read.
    """
    if path is not None:
        return _from_file(lake, spec, path, f"file {path}")
    evaluate = decisions.evaluate_command(spec.name)
    if name is None or name == CHAMPION:
        decision = decisions.newest_decision(lake, spec)
        champion = None if decision is None else decision.champion
        if decision is not None and champion is not None:
            version = f"{champion.model} as of {champion.as_of}"
            if champion.registry_version is not None:
                version += f", registry version {champion.registry_version}"
            if champion.unproven:
                version += ", unproven"
            content = decisions.read_champion_file(lake, spec, champion)
            return _scorer(lake, spec, content, f"champion by the decision of {decision.as_of}", version)
        if name == CHAMPION:
            raise InferError(f"there is no champion yet: `{evaluate}` decides")
        return _exported(lake, spec, reports)
    exported = reports.model(spec.name, name)
    if not exported.is_file():
        there = [path.stem.removeprefix(f"{spec.name}-") for path in _exported_files(spec, reports)]
        found = f"exported are {', '.join(there)}" if there else "none was exported yet"
        hint = did_you_mean(name, [CHAMPION, *there]) or f" `{evaluate}` exports models."
        raise InferError(f"{exported}: no such model; {found}.{hint}")
    return _from_file(lake, spec, exported, f"exported model {exported}")


def _exported(lake: Lake, spec: TimescaleSpec, reports: Reports) -> Scorer:
    plain = [reports.model(spec.name, kind) for kind in FIRST_CHAMPIONS]
    found = next((path for path in (*plain, *_exported_files(spec, reports)) if path.is_file()), None)
    if found is None:
        raise InferError(
            f"there is no champion yet and {reports.artifacts_dir} has no model: "
            f"run `{decisions.evaluate_command(spec.name)}`"
        )
    return _from_file(lake, spec, found, f"exported model {found}, there is no champion yet")


def _exported_files(spec: TimescaleSpec, reports: Reports) -> list[Path]:
    return sorted(reports.artifacts_dir.glob(f"{spec.name}-*.zip"))


def _from_file(lake: Lake, spec: TimescaleSpec, path: Path, source: str) -> Scorer:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InferError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _scorer(lake, spec, content, source, None)


def _scorer(lake: Lake, spec: TimescaleSpec, content: bytes, source: str, version: str | None) -> Scorer:
    from cryptovol_dagster.core.models import load_model

    model = load_model(content)
    if model.meta.timescale != spec.name:
        raise InferError(
            f"{source} is of {model.meta.timescale}, requested is {spec.name}: --chain {model.meta.timescale}"
        )
    as_of = _trained_as_of(lake, spec, model)
    flagging = Flagging() if as_of is None else flagging_of(lake, spec, as_of, model.name)
    known = f"{model.name} as of {as_of}" if as_of else f"{model.name}, as-of time unknown here"
    return Scorer(model, source, version or known, flagging.threshold, flagging.episode_rule)


def _trained_as_of(lake: Lake, spec: TimescaleSpec, model: Model) -> str | None:
    """Find the hour whose splits the model was trained by; its training rows end at most a span before."""
    start_ns = model.meta.train_end_ns
    end_ns = start_ns + (look_back.training_look_back(spec) + 1) * spec.partition_ns
    for key in partitions_between(start_ns, end_ns, spec.partition_ns):
        if lake.exists(spec.asset("splits"), key, "json"):
            plan = plans.read_plan(lake, spec, key)
            if plan.trainable and plan.problem_hash == model.meta.problem_hash:
                return key
    return None


def read_features(lake: Lake, spec: TimescaleSpec, path: Path | None) -> FeatureRows:
    """Read features to score: a file (or folder of files), else the newest partition in the lake.

    Args:
        lake: where the partitions are.
        spec: the timescale.
        path: Parquet of `replay --out`, `featurize` or the lake, a folder of such
            files, or a CSV of `KEY_COLUMNS` and just the model's columns.

    Raises:
        InferError: there are none, or the file is none.
    """
    if path is None:
        asset = spec.asset("features")
        keys = lake.partitions(asset)
        if not keys:
            raise InferError(f"{lake.root} has no features yet: name a file with --features")
        window = partition_window(keys[-1])
        version = lake.versions(asset, *window)[keys[-1]]
        frame = lake.read_table(asset, *window).to_pandas()
        return FeatureRows(frame, f"{asset} of {keys[-1]}", version, lake.reference_set(asset, keys[-1]))
    try:
        if path.suffix == ".csv":
            frame, version, reference_set = pd.read_csv(path), None, ()
        else:
            files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
            meanings = {_meaning_of(file) for file in files}
            if len(meanings) != 1:
                raise InferError(f"{path}: expected files of one feature version, found {len(meanings)}")
            frame = pd.concat([pd.read_parquet(file) for file in files])
            version, reference_set = meanings.pop()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InferError(f"{path}: cannot be read as features: {' '.join(str(error).split())}") from error
    if missing := [name for name in KEY_COLUMNS if name not in frame.columns]:
        raise InferError(
            f"{path}: lacks {', '.join(missing)}; expected features as `cryptovol replay --out` writes them"
        )
    if not pd.api.types.is_integer_dtype(frame["reason"]):
        raise InferError(
            f"{path}: reason is not a number; expected features of `cryptovol replay --out`. "
            "`cryptovol export` has another format: `cryptovol export scores` scores stored features"
        )
    frame["bar_start"] = pd.to_datetime(frame["bar_start"], utc=True)
    return FeatureRows(frame, str(path), version, reference_set)


def _meaning_of(file: Path) -> tuple[str | None, tuple[str, ...]]:
    metadata = pq.read_schema(file).metadata or {}
    if _LIVE_VERSION_KEY in metadata:
        return metadata[_LIVE_VERSION_KEY].decode(), ()
    version, reference_set = meaning_of(file)
    return version or None, reference_set


def inputs_of(rows: FeatureRows, scorer: Scorer) -> pd.DataFrame:
    """Return the feature columns of every row, after the check that the model can read them.

    Two writers of one feature set may differ in optional columns: training leaves out rarely known ones, and
    live rows lack the cross features. Columns that the model lacks are dropped, missing ones are unknown.

    Raises:
        InferError: the rows are of another feature set than the model was trained on, or have no version
            and differ in their columns.
    """
    meta = scorer.model.meta
    if rows.version is not None:
        require_same_features(meta, rows.source, rows.version, rows.reference_set)
    inputs = rows.frame.drop(columns=[*KEY_COLUMNS, *_LIVE_COLUMNS], errors="ignore")
    if rows.version is None:
        _require_same_columns(rows, inputs, scorer)
    return inputs.reindex(columns=list(meta.inputs))


def require_same_features(meta: ModelMeta, source: str, version: str, reference_set: tuple[str, ...]) -> None:
    """Make sure that rows mean what a model learned: their own features, and the cross features it reads.

    A model of own features scores rows of any reference set.

    Args:
        meta: of the model.
        source: the rows, for messages.
        version: of the rows.
        reference_set: products whose means their cross features are; empty where there are none.

    Raises:
        InferError: they do not.
    """
    own = version.partition("+")[0]
    if own != meta.feature_hash:
        raise InferError(
            f"{source}: features of version {own}, model {meta.name} was trained on version "
            f"{meta.feature_hash}: compute the features again, or train a new model"
        )
    if reference_set and meta.cross_set and reference_set != meta.cross_set:
        raise InferError(
            f"{source}: cross features over {', '.join(reference_set)}; model {meta.name} was trained on "
            f"means over {', '.join(meta.cross_set)}: train a new model, or put timescales.reference_set "
            "back and type `cryptovol reference-set --apply`"
        )


def _require_same_columns(rows: FeatureRows, inputs: pd.DataFrame, scorer: Scorer) -> None:
    """Raise an error for rows without a version that do not have the model's columns either.

    Raises:
        InferError: a column is missing or unknown; the message contains how to write rows with a version.
    """
    found, expected = set(map(str, inputs.columns)), set(scorer.model.meta.inputs)
    kinds = {"missing": sorted(expected - found), "unknown to the model": sorted(found - expected)}
    said = [f"feature columns {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if said:
        raise InferError(
            f"{rows.source}: {'; '.join(said)}. A file without a feature version (every CSV) must have the "
            f"columns of model {scorer.model.name}: write Parquet, e.g. `cryptovol replay --out FILE.parquet`"
        )


def _some(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def score(rows: FeatureRows, scorer: Scorer, *, why: bool = False) -> pd.DataFrame:
    """Score every row that may be scored.

    Args:
        rows: features.
        scorer: the model.
        why: add columns with the features that moved the probability of each flagged row most.

    Returns:
        One row per row of features, by time and product: `bar_start`, `product`, `probability` (NaN where
        there is no prediction), `flag` (null there, and without an operating point) and `reason` (``ok``, or
        why there is no prediction). With `why` also `why_1_feature`, `why_1_value` and `why_1_log_odds`, up
        to 5, which are null where the row is not flagged.

    Raises:
        InferError: the rows are of another feature set, or have no version and differ in their columns; or
            `why` without an operating point.
        ModelError: a column that the model reads contains infinity, or NaN though it is not optional; or
            `why` of a model whose log-odds cannot be attributed exactly.
    """
    if why and scorer.threshold is None:
        raise InferError(
            f"no operating point is stored for {scorer.version}: no row is flagged, so --why has none to "
            "explain. Name another --model, or run `cryptovol evaluate`"
        )
    frame = rows.frame
    valid = frame["valid"].to_numpy(dtype=bool)
    inputs = inputs_of(rows, scorer)
    probability = pd.Series(float("nan"), index=range(len(frame)))
    probability[valid] = scorer.model.predict_proba(inputs.loc[valid])
    flag = pd.Series(pd.NA, index=probability.index, dtype="boolean")
    if scorer.threshold is not None:
        flag[valid] = probability[valid] >= scorer.threshold
    scores = pd.DataFrame(
        {
            "bar_start": frame["bar_start"].to_numpy(),
            "product": frame["product"].astype(str).to_numpy(),
            "probability": probability,
            "flag": flag,
            "reason": [Reason(code).name.lower() for code in frame["reason"]],
        }
    )
    if why:
        scores = scores.assign(**_reasons(scorer.model, inputs, flag.fillna(False).to_numpy(dtype=bool)))
    return scores.sort_values(["bar_start", "product"], ignore_index=True)


def _reasons(model: Model, inputs: pd.DataFrame, flagged: NDArray[np.bool_]) -> dict[str, pd.Series]:
    """Return the columns of `score` with the greatest contributions of the flagged rows."""
    tops = top_contributions(model, inputs.loc[flagged])
    at = np.flatnonzero(flagged)
    columns: dict[str, pd.Series] = {}
    for rank in range(SHOWN):
        found = {row: top[rank] for row, top in zip(at.tolist(), tops, strict=True) if rank < len(top)}
        for part, dtype in (("feature", "object"), ("value", "float64"), ("log_odds", "float64")):
            values = {row: getattr(one, part) for row, one in found.items()}
            column = pd.Series(values, index=range(len(inputs)), dtype=dtype)
            columns[f"why_{rank + 1}_{part}"] = column.astype("string") if part == "feature" else column
    return columns
