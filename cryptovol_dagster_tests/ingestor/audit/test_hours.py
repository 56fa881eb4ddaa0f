"""Every number is stored, control, dead or known to be lost; what is not is found, and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.audit.story import Story
from cryptovol_dagster_tests.ingestor.feed.support import T0_NS
from ingestor.archive.checkpoints import LOST_AFTER_NS
from ingestor.archive.positions import record_gap
from ingestor.archive.reader import RawReader
from ingestor.audit.findings import Audit
from ingestor.audit.hours import audit
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES
from ingestor.times import HOUR_NS, NS, hour_key

KINDS = (
    "ticker",
    "ticker",
    "both",
    "market_trades",
    "heartbeats",
    "subscriptions",
    "dead",
    "empty",
    "gap",
    "new",
)


def audited(story: Story, **options: bool) -> Audit:
    return audit(RawReader(story.raw_dir), **options)


def counts(result: Audit) -> dict[str, int]:
    names = ("stored", "control", "dead", "in_gaps", "unconfirmed", "unaccounted")
    return {name: result.total(name) for name in names if result.total(name)}


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_every_kind_of_frame_is_accounted_for(story: Story) -> None:
    told = story.connect("c1")
    told.frames("subscriptions", "heartbeats", "ticker", "gap", "gap", "both", "market_trades", "dead")
    told.checkpoint().frames("empty", "new", "ticker").end()
    story.store()
    result = audited(story)
    assert result.findings == ()
    assert counts(result) == {"stored": 4, "control": 4, "dead": 1, "in_gaps": 2}
    assert result.verdict == "every one of 11 sequence numbers is accounted for"
    (loss,) = result.losses
    assert (loss.kind, loss.connection_id, loss.from_sequence, loss.to_sequence, loss.count) == (
        ("sequence", "c1", 3, 4, 2)
    )
    assert (loss.start_ns, loss.end_ns) == (T0_NS + 2 * NS // 10, T0_NS + 5 * NS // 10)


@pytest.mark.parametrize(
    ("topic", "kind", "says"),
    [
        (TICKS, "ticker", "expected 3 frames with entries, found 2"),
        (TRADES, "market_trades", "expected 3 frames with entries, found 2"),
        (DEAD, "dead", "expected 1 dead letters, found 0"),
    ],
)
def test_a_message_that_is_promised_but_not_stored_is_found(
    story: Story, topic: str, kind: str, says: str
) -> None:
    told = story.connect("c1").frames("ticker", "market_trades").checkpoint()
    story.lose.add(topic)
    told.frames(kind, *{"dead": ["heartbeats"]}.get(kind, ["ticker", "ticker"])).end()
    story.store()
    (finding,) = (result := audited(story)).findings
    assert finding.text == f"{hour_key(T0_NS)}, connection c1, sequence 2 to {told.next_number - 1}: {says}"
    assert (finding.count, counts(result)["unaccounted"]) == (1, 1)
    assert result.verdict == f"unaccounted for: {finding.text}"


def test_a_gap_that_was_not_told_is_found(story: Story) -> None:
    told = story.connect("c1").frames("ticker", "gap")
    story.lose.add(EVENTS)
    told.frames("ticker").end()
    story.store()
    (finding,) = audited(story).findings
    assert finding.text.endswith("expected 1 numbers reported as gaps, found 0")


def test_numbers_that_no_checkpoint_speaks_of_are_found(story: Story) -> None:
    told = story.connect("c1").frames("ticker").checkpoint().frames("ticker", "heartbeats", "heartbeats")
    story.lose.add(EVENTS)
    told.checkpoint().frames("ticker").end()
    story.store()
    (finding,) = audited(story).findings
    assert (finding.count, finding.text) == (
        2,
        f"{hour_key(T0_NS)}, connection c1, sequence 1 to 3: expected a checkpoint over them, found none",
    )


def test_numbers_after_the_last_checkpoint_of_a_connection_that_ended_are_found(story: Story) -> None:
    told = story.connect("c1").frames("ticker").checkpoint().frames("ticker", "heartbeats")
    story.lose.add(EVENTS)  # the last checkpoint; the end comes after it
    told.end()
    story.store()
    (finding,) = audited(story).findings
    assert (finding.kind, finding.count) == ("tail", 1)


@pytest.mark.parametrize("topic", [TICKS, EVENTS])
def test_a_file_that_vanished_is_found_by_its_offsets_and_by_what_was_promised(
    story: Story, topic: str
) -> None:
    told = story.connect("c1")
    for _ in range(12):
        told.frames("ticker", "heartbeats").checkpoint()
    told.end()
    story.store(every=3)
    assert audited(story).findings == ()
    story.files(topic)[1].unlink()
    found = audited(story).findings
    assert {finding.kind for finding in found} >= {"offsets", "checkpoint"}
    offsets = next(finding for finding in found if finding.kind == "offsets")
    assert offsets.count == 3
    assert f"{topic} partition 0: expected" in offsets.text
    assert "to begin at offset 3, found 6: 3 offsets are missing after" in offsets.text


def test_the_only_file_of_a_topic_that_vanished_is_found(story: Story) -> None:
    story.connect("c1").frames("ticker", "ticker").end()
    story.store()
    story.files(TICKS)[0].unlink()
    assert [finding.count for finding in audited(story).findings] == [2]
    # While an archive runs, it may only not have come to it.
    result = audited(story, still_storing=True)
    assert (result.findings, counts(result)) == ((), {"unconfirmed": 2})


def test_offsets_that_the_broker_lost_explain_as_many_numbers_and_no_more(story: Story) -> None:
    told = story.connect("c1").frames("ticker").checkpoint()
    story.store()
    told.frames("ticker", "ticker", "heartbeats").checkpoint().frames("ticker").end()
    story.store(every=2)
    story.files(TICKS)[1].unlink()
    record_gap(story.raw_dir, TICKS, story.log_id, 0, 1, 3, "deleted by the broker's retention")
    result = audited(story)
    assert result.findings == ()
    assert counts(result) == {"stored": 2, "control": 1, "in_gaps": 2}
    (loss,) = result.losses
    assert (loss.kind, loss.count, loss.start_ns, loss.end_ns) == (
        ("offsets", 2, T0_NS, T0_NS + 4 * NS // 10)
    )
    assert [(one.lost, one.missing) for one in result.offsets if one.topic == TICKS] == [(2, 0)]


def test_a_killed_recorders_last_numbers_are_in_flight_once_another_connection_outlives_it(
    story: Story,
) -> None:
    told = story.connect("killed").frames("ticker", "heartbeats").checkpoint()
    told.frames("ticker", "heartbeats", "gap", "heartbeats", "ticker")
    story.store()
    alone = audited(story)
    assert (alone.findings, alone.losses[1:]) == ((), ())
    assert counts(alone) == {"stored": 3, "control": 1, "in_gaps": 1, "unconfirmed": 2}
    assert alone.verdict.endswith("accounted for; 2 not confirmed yet")

    story.at_ns += LOST_AFTER_NS + NS
    story.connect("next").frames("ticker").end()
    story.store()
    result = audited(story)
    assert result.findings == ()
    assert [(loss.kind, loss.connection_id, loss.count) for loss in result.losses] == [
        ("sequence", "killed", 1),
        ("between", "next", None),
        ("in_flight", "killed", 2),
    ]
    between, in_flight = result.losses[1:]
    assert (in_flight.from_sequence, in_flight.to_sequence) == (2, 6)
    assert (in_flight.start_ns, in_flight.end_ns) == (T0_NS + NS // 10, between.end_ns)
    assert (between.start_ns, between.detail) == (
        (T0_NS + 6 * NS // 10, {"previous_connection_id": "killed"})
    )


def test_what_a_killed_recorders_broker_took_with_it_is_lost_and_known(tmp_path: Path) -> None:
    """An embedded broker dies with its process: acknowledged, promised, and never stored."""
    first = Story(tmp_path, "aaaaaaaa")
    told = first.connect("killed").frames("ticker").checkpoint()
    first.store()
    told.frames("ticker", "ticker", "heartbeats").checkpoint()
    first.store(without=(TICKS,))
    assert counts(audited(first)) == {"stored": 1, "unconfirmed": 3}
    second = Story(tmp_path, "bbbbbbbb")
    second.at_ns = first.at_ns + NS
    second.connect("next").frames("ticker", "ticker").end()
    second.store()
    result = audited(second)
    assert result.findings == ()
    assert counts(result) == {"stored": 3, "control": 1, "in_gaps": 2}
    lost = next(loss for loss in result.losses if loss.kind == "offsets")
    assert (lost.count, lost.detail["first_offset"], lost.detail["reason"]) == (
        (2, 1, "the log was replaced before they were stored")
    )


@pytest.mark.parametrize(("old", "new"), [("aaaaaaaa", "bbbbbbbb"), ("bbbbbbbb", "aaaaaaaa")])
@pytest.mark.parametrize("stored_before", [True, False])
def test_what_a_topic_took_with_it_when_it_was_recreated_is_lost_and_known(
    tmp_path: Path, old: str, new: str, stored_before: bool
) -> None:
    story = Story(tmp_path)
    story.log_ids[TICKS] = old
    told = story.connect("c1").frames("ticker")
    if stored_before:
        story.store()
    told.frames("ticker", "ticker").checkpoint()
    story.recreate(TICKS, new)
    told.tell("log_recreated", {"topic": TICKS, "old_log": old, "new_log": new})
    told.frames("ticker", "heartbeats").end()
    story.store()
    result = audited(story)
    assert result.findings == ()
    lost = 2 if stored_before else 3
    assert counts(result) == {"stored": 4 - lost, "control": 1, "in_gaps": lost}
    (loss,) = result.losses
    assert (loss.kind, loss.count, loss.detail["log_id"]) == ("offsets", lost, old)


def test_a_span_tells_of_its_hours_what_the_whole_tells(story: Story) -> None:
    story.at_ns = T0_NS + HOUR_NS - 3 * NS
    told = story.connect("c1", of_a_second=1)
    for _ in range(3):
        told.frames("ticker", "heartbeats", "gap", "ticker", "dead").checkpoint()
    told.end()
    story.store(every=4)
    whole = audited(story)
    parts = [
        audit(RawReader(story.raw_dir), T0_NS + hour * HOUR_NS, T0_NS + (hour + 1) * HOUR_NS)
        for hour in range(2)
    ]
    assert [line for part in parts for line in part.lines] == list(whole.lines)
    assert {line.hour_ns for line in whole.lines} == {T0_NS, T0_NS + HOUR_NS}
    assert [loss for part in parts for loss in part.losses] == list(whole.losses)
    assert counts(whole) == {"stored": 6, "control": 3, "dead": 3, "in_gaps": 3}


def test_the_audit_is_plain_json(story: Story) -> None:
    story.connect("c1").frames("ticker", "gap", "ticker").end()
    story.store()
    value = json.loads(json.dumps(audited(story).as_dict()))
    assert value["accounted"] is True
    assert value["totals"]["frames"] == 3
    assert value["gap_ledger"][0]["kind"] == "sequence"
    assert value["table"][0]["hour"] == hour_key(T0_NS)


@given(
    lives=st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=60), min_size=1, max_size=3),
    checkpoints=st.sets(st.integers(0, 180), max_size=12),
    every=st.integers(1, 40),
    of_a_second=st.sampled_from([1, 10]),
    begin_s=st.integers(3_500, 3_600),
    last_is_killed=st.booleans(),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_feed_does_nothing_is_unaccounted_for_and_every_number_is_counted_once(
    tmp_path_factory: pytest.TempPathFactory,
    lives: list[list[str]],
    checkpoints: set[int],
    every: int,
    of_a_second: int,
    begin_s: int,
    last_is_killed: bool,
) -> None:
    story = Story(tmp_path_factory.mktemp("raw"))
    story.at_ns = T0_NS + begin_s * NS
    frames, lost, at = 0, 0, 0
    for life, kinds in enumerate(lives):
        told = story.connect(f"c{life}", of_a_second=of_a_second)
        for kind in [*kinds, "heartbeats"]:
            told.frames(kind)
            at += 1
            if at in checkpoints:
                told.checkpoint()
        killed = last_is_killed and life == len(lives) - 1
        if not killed:
            told.end()
        frames += told.next_number
        lost += kinds.count("gap")
    story.store(every=every)
    result = audited(story)
    assert result.findings == ()
    unknown = frames - result.total("frames")
    assert unknown == 0 or (killed and unknown > 0)
    assert sum(loss.count or 0 for loss in result.losses if loss.kind == "sequence") == lost
