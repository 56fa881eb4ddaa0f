"""Scores as a scorer publishes them, computed from the features in the lake, stored as the archive does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from cryptovol_dagster.champion.scoring import score
from cryptovol_dagster.core.features.catalogue import feature_names
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.models import load_model
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.core.times import HOUR_NS, hour_window, partition_at
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from ingestor.archive.layout import CLOSED_SCORES, ClosedHour, closing_path
from ingestor.archive.schema import to_batch
from ingestor.archive.writer import OpenFile
from ingestor.envelope import SCORES_TOPIC, ScoreMessage, encode

LOG_ID = "scorelog"
#: From a bar's end to its publication.
DELAY_NS = 2_200_000_000


def scores_of_lake(
    lake: Lake, spec: TimescaleSpec, keys: Sequence[str], *, before: str, threshold: float = 0.3
) -> list[ScoreMessage]:
    """Score every stored row of hours with the champion of before, in the order of publication.

    Args:
        lake: of features and decisions.
        spec: the chain.
        keys: hours.
        before: the champion is that of the newest decision before this hour.
        threshold: of the flag.
    """
    decision = decisions.newest_decision(lake, spec, before=before)
    assert decision is not None
    champion = decision.champion
    assert champion is not None
    content = decisions.read_champion_file(lake, spec, champion)
    model, version = load_model(content), f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"
    window = hour_window(keys[0])[0], hour_window(keys[-1])[1]
    rows = lake.read_table(spec.asset("features"), *window).to_pandas()
    names = list(feature_names(spec))
    valid = rows["valid"].to_numpy()
    probability = np.full(len(rows), np.nan)
    probability[valid] = score(model, rows.loc[valid, names].reset_index(drop=True))
    ends = rows["bar_start"].astype("datetime64[ns, UTC]").astype(np.int64) + spec.bar_ns
    found = []
    for product, end_ns, reason, row_hash, p in zip(
        rows["product"].astype(str),
        ends.tolist(),
        rows["reason"],
        row_hashes(rows[names].to_numpy(np.float64)),
        probability.tolist(),
        strict=True,
    ):
        known = not np.isnan(p)
        found.append(
            ScoreMessage(
                chain=spec.name,
                product_id=product,
                bar_end_ns=end_ns,
                revision=0,
                published_at_ns=end_ns + DELAY_NS,
                provisional=False,
                probability=p if known else None,
                reason="ok" if known else Reason(int(reason)).name.lower(),
                flag=p >= threshold if known else None,
                threshold=threshold,
                model=champion.model,
                model_as_of=champion.as_of,
                model_version=champion.registry_version or version,
                model_age_s=0.0,
                feature_version="f1",
                row_hash=row_hash,
            )
        )
    return sorted(found, key=lambda message: (message.bar_end_ns, message.product_id))


def revised(message: ScoreMessage, *, after_ns: int = 0, **changes: object) -> ScoreMessage:
    """Return the next revision of a message, published later."""
    published_at_ns = message.published_at_ns + after_ns
    more = {"revision": message.revision + 1, "published_at_ns": published_at_ns, **changes}
    return msgspec.structs.replace(message, **more)


def archive_scores(raw_dir: Path, messages: Iterable[ScoreMessage], *, first_offset: int = 0) -> None:
    """Store messages in raw storage, a file an hour."""
    by_hour: dict[str, list[bytes]] = {}
    for message in messages:
        by_hour.setdefault(partition_at(message.bar_end_ns, HOUR_NS), []).append(encode(message))
    for key, values in sorted(by_hour.items()):
        start_ns, _ = hour_window(key)
        batch = to_batch(SCORES_TOPIC, 0, first_offset, values, lambda _, at=start_ns: at, None)
        file = OpenFile(raw_dir, SCORES_TOPIC, LOG_ID, 0, first_offset)
        file.append(batch, 0)
        file.publish()
        first_offset += len(values)


def close_scores(raw_dir: Path, key: str, *, rows: int = 1, revision: int = 0) -> None:
    """Record that the scores of an hour are complete."""
    start_ns, end_ns = hour_window(key)
    path = closing_path(raw_dir, start_ns, revision, CLOSED_SCORES)
    path.parent.mkdir(parents=True, exist_ok=True)
    closed = ClosedHour(
        hour=key,
        closed_at_ns=end_ns + 60 * NS,
        watermark_ns=end_ns + 60 * NS,
        rows={SCORES_TOPIC: rows},
        revision=revision,
    )
    path.write_bytes(msgspec.json.encode(closed))
