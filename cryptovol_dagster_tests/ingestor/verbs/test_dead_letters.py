"""`cryptovol dead-letters`, and what `ingest` says of letters and drift, on a recording through a socket."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from websockets.sync.server import ServerConnection

from cryptovol_dagster_tests.ingestor.feed.support import entry, frame
from ingestor.cli import cli
from ingestor.feed.counters import FeedCounters

FeedServer = Callable[[Callable[[ServerConnection], None]], AbstractContextManager[str]]
BAD_ENTRY = {"price": "1", "note": "\x1b[2J"}
BAD = ["no frame", "[nor this]", frame(3, events=5), frame(4, timestamp="2100-01-01T00:00:00Z")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=False)


@pytest.fixture
def recorded(environment: Path, feed_server: FeedServer) -> Result:
    """Frames with five dead letters and drift among them, recorded by the command."""

    def script(socket: ServerConnection) -> None:
        socket.send(frame(0))
        socket.send(frame(1, events=[{"type": "update", "tickers": [BAD_ENTRY, entry() | {"x": 1}]}]))
        socket.send(frame(2, events=[{"type": "update", "tickers": [entry() | {"x": 1}]}]))
        for bad in BAD:
            socket.send(bad)
        socket.close(1000)

    with feed_server(script) as url:
        return run("ingest", "--url", url, "--until-closed")


def test_the_summary_tells_letters_and_drift(recorded: Result) -> None:
    assert recorded.exit_code == 0, recorded.output
    assert "dead letters" in recorded.stdout
    assert "ticker: timestamp is N s ahead of the receiving clock" in recorded.stdout
    assert "ticker: unknown field 'x'" in recorded.stdout


def test_the_progress_line_tells_the_commonest(caplog: pytest.LogCaptureFixture) -> None:
    from ingestor.kafka.publisher import PublishCounters
    from ingestor.verbs.ingest import _log_progress

    counters = FeedCounters()
    with caplog.at_level("INFO"):
        _log_progress(counters, PublishCounters())
        assert "0 dead letters, 0 reconnects; newest none yet" in caplog.messages[0]
        assert "unlike" not in caplog.messages[0]
        counters.dead_letters = 3
        counters.dead_reasons.update({"not a {frame}": 2, "other": 1})
        counters.drift.update({"ticker: unknown field 'x'": 7})
        _log_progress(counters, PublishCounters())
    assert "3 dead letters (mostly not a {frame}), 0 reconnects" in caplog.messages[1]
    told = "; 7 × unlike the documented protocol (ticker: unknown field 'x')"
    assert caplog.messages[1].endswith(told)


def test_letters_are_listed_by_reason(recorded: Result) -> None:
    listed = run("dead-letters")
    assert listed.exit_code == 0
    assert listed.stdout.startswith("5 dead letters in ")
    assert "ticker: an entry: entry: Object missing required field `product_id`" in listed.stdout
    assert "[2J" not in listed.stdout

    found = json.loads(run("dead-letters", "--json").stdout)
    assert found["letters"] == sum(row["letters"] for row in found["reasons"]) == 5
    assert "shown" not in found
    assert all(row["connections"] == 1 and row["first"] <= row["last"] for row in found["reasons"])


def test_letters_are_shown_safe_to_print(recorded: Result) -> None:
    shown = run("dead-letters", "--show", "--reason", "PRODUCT_ID")
    assert shown.stdout.startswith("1 dead letters")
    assert '{"price":"1","note":"\\u001b[2J"}' in shown.stdout
    assert "sequence 1" in shown.stdout
    assert "\x1b" not in shown.stdout
    two = run("dead-letters", "--show", "--limit", "2")
    assert "the first 2 of 5" in two.stdout
    assert len(json.loads(run("dead-letters", "--show", "--limit", "2", "--json").stdout)["shown"]) == 2


def test_letters_are_exported_as_they_came(recorded: Result, environment: Path) -> None:
    file = environment / "letters.ndjson"
    assert run("dead-letters", "--export", str(file)).exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [base64.b64decode(line["data_base64"]).decode() for line in lines[1:]] == BAD
    assert json.loads(lines[0]["text"]) == BAD_ENTRY
    assert [line["sequence_num"] for line in lines] == [1, None, None, 3, 4]


def test_retrying_counts_what_can_be_read_now(
    recorded: Result, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "0 of 5 could be read now" in run("dead-letters", "--retry").stdout
    # What was refused for a clock that was behind is readable to one that is not.
    monkeypatch.setenv("CRYPTOVOL__INGEST__FUTURE_LIMIT_S", "1e10")
    assert "1 of 5 could be read now" in run("dead-letters", "--retry").stdout
    found = json.loads(run("dead-letters", "--retry", "--json").stdout)
    assert sum(row["readable_now"] for row in found["reasons"]) == 1


def test_a_span_without_letters_says_so(recorded: Result, environment: Path) -> None:
    for span in (["--to", "2020-01-01"], ["--from", "2100-01-01T00:00:00Z"], ["--reason", "no such reason"]):
        found = run("dead-letters", *span)
        assert (found.exit_code, found.stdout.startswith("no dead letters in ")) == (0, True)
    file = environment / "none.ndjson"
    assert "none.ndjson is empty" in run("dead-letters", "--to", "2020-01-01", "--export", str(file)).stdout
    assert file.read_text() == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--from", "yesterday"],
        ["--from", "2026-04-04", "--to", "2026-04-04"],
        ["--limit", "0"],
        ["--export", "."],
    ],
)
def test_wrong_usage_is_exit_2(environment: Path, arguments: list[str]) -> None:
    assert run("dead-letters", *arguments).exit_code == 2


def test_no_raw_storage_is_one_line_and_exit_1(environment: Path) -> None:
    found = run("dead-letters")
    assert found.exit_code == 1
    assert found.stderr == (
        f"Error: {environment / 'data' / 'raw'} is not a folder: nothing was recorded there "
        "(cryptovol config: storage)\n"
    )
