"""`cryptovol score` beside a featurizer: what it publishes equals the rows of the assets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition

from cryptovol_dagster.core.features.compute import compute_features
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.specs import NS
from cryptovol_dagster_tests.e2e.processes import CRYPTOVOL, cryptovol, environment, simulated
from cryptovol_dagster_tests.live.parity import SPEC, bars_of, last_line
from cryptovol_dagster_tests.live.scoring.champions import promote, trained
from cryptovol_dagster_tests.live.test_featurizer import Instance, recording, settings_for
from ingestor.envelope import DECODERS, SCORES_TOPIC, ScoreMessage, closed_partition
from ingestor.kafka.broker import Broker

MARKET = ("--hours", "0.75", "--seed", "20260404", "--products", "BTC-USD,ETH-USD,SOL-USD")
FAULTS = "gap@600s:3; disconnect@1500s:1006; gap@2000s:40"


def published_scores(broker: Broker) -> list[ScoreMessage]:
    """All of ticks.scores, partition by partition."""
    name, found = broker.topic(SCORES_TOPIC), []
    consumer = Consumer(broker.consumer_config("test-scores"))
    for partition, end in broker.end_offsets(SCORES_TOPIC).items():
        last = -1
        consumer.assign([TopicPartition(name, partition, 0)])
        while last < end - 1:
            for message in consumer.consume(2_000, 0.2):
                found.append(DECODERS[SCORES_TOPIC].decode(message.value()))
                last = message.offset()
    consumer.close()
    return found


def last_revisions(messages: list[ScoreMessage]) -> dict[tuple[str, int], ScoreMessage]:
    rows: dict[tuple[str, int], ScoreMessage] = {}
    for message in messages:
        if closed_partition(message) is None:
            key = message.product_id, message.bar_end_ns
            if key not in rows or rows[key].revision <= message.revision:
                rows[key] = message
    return rows


def assert_scores_are_those_of_the_assets(messages: list[ScoreMessage], raw_dir: Path, model: str) -> int:
    """Every published row equals the batch row bit for bit, and none is missing; return how many scored."""
    rows = last_revisions(messages)
    grid = compute_features(bars_of(raw_dir), SPEC)
    scored = 0
    for k, product in enumerate(grid.products):
        hashes = row_hashes(np.ascontiguousarray(grid.values[:, k].T))
        ends = (grid.bar_starts_ns + SPEC.bar_ns).tolist()
        own = sorted(end for name, end in rows if name == product)
        assert own == list(range(own[0], own[-1] + SPEC.bar_ns, SPEC.bar_ns)), "a second is missing"
        place = {end: at for at, end in enumerate(ends)}
        # What follows the last tick depends on when the run ended.
        known = [end for end in own if end in place and end <= own[-1] - 120 * NS]
        assert len(known) > 2_000
        for end in known:
            row, at = rows[product, end], place[end]
            reason = Reason(int(grid.reason[k, at])).name.lower()
            assert (row.reason, row.row_hash) == (reason, hashes[at]), (product, end, row)
        scored_ends = [end for end in known if rows[product, end].reason == "ok"]
        frame = grid.to_frame()
        frame = frame[frame["product"] == product].set_index("bar_start")
        at = [place[end] for end in scored_ends]
        inputs = frame.iloc[at][list(trained(model).meta.inputs)]
        expected = trained(model).predict_proba(inputs)
        found = np.array([rows[product, end].probability for end in scored_ends], dtype=np.float64)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        scored += len(scored_ends)
    return scored


def killed(env: dict[str, str]) -> bool:
    """Start a scorer, kill it once it has published a probability; False where none came."""
    process = subprocess.Popen([*CRYPTOVOL, "score"], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    is_scoring = any("first of" in line and "0." in line for line in process.stdout)
    process.kill()
    process.communicate()
    return is_scoring


@pytest.mark.kafka
@pytest.mark.slow
def test_killed_and_relieved_it_publishes_the_rows_of_the_assets(real_broker: Broker, tmp_path: Path) -> None:
    from cryptovol_dagster.lake.files import Lake

    settings = settings_for(tmp_path, real_broker.settings)
    env = environment(settings, tmp_path)
    champion = promote(Lake(settings.storage.lake_dir), "xgboost", "2026-04-03-00:00")
    with (
        simulated(*MARKET, "--speed", "120", "--once", "--faults", FAULTS, env=env) as market,
        recording(env, market.url, "--until-closed") as (recorder, _),
    ):
        featurizer = Instance(settings, until_idle_s=6)
        featurizer.start()
        assert killed(env)
        recorder.wait(timeout=90)
    done = cryptovol("score", "--until-idle", "8", "--json", env=env)
    assert done.returncode == 0, done.stderr
    featurizer.join(timeout=60)
    summary = last_line(done.stdout)
    assert summary["champion"] == str(champion)
    messages = published_scores(real_broker)
    assert assert_scores_are_those_of_the_assets(messages, settings.storage.raw_dir, "xgboost") > 1_000
    # Nothing is published twice: a key with its revision stands there once.
    seen: dict[tuple[str, int, int], ScoreMessage] = {}
    twice = []
    for message in messages:
        if closed_partition(message) is None:
            key = message.product_id, message.bar_end_ns, message.revision
            if key in seen:
                twice.append((seen[key], message))
            seen[key] = message
    assert not twice, (len(twice), twice[0], twice[-1])
