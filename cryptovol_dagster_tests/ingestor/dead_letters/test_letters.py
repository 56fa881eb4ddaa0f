"""Letters come back from raw storage as they went in, grouped by what they have in common."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import pytest

from cryptovol_dagster_tests.ingestor.archive.messages import MINUTE_NS, TEN_NS
from cryptovol_dagster_tests.ingestor.archive.test_reader import store
from cryptovol_dagster_tests.ingestor.feed.support import (
    NS,
    T0_NS,
    RememberingPublisher,
    entry,
    frame,
)
from ingestor.archive.errors import ArchiveError
from ingestor.dead_letters import letters as module
from ingestor.dead_letters.letters import Letter, iter_letters, read_again
from ingestor.dead_letters.report import ExportError, exporting, survey
from ingestor.envelope import DEAD, DeadLetter, encode
from ingestor.exchange.reasons import entry_reason
from ingestor.feed.connection import Connection
from ingestor.feed.counters import FeedCounters

EVER = (0, 2**62)
LIMIT_NS = 300 * NS


def message(data: bytes, reason: str = "not JSON", at_ns: int = TEN_NS, connection: str = "c1") -> bytes:
    return encode(
        DeadLetter(
            reason=reason,
            at_ns=at_ns,
            connection_id=connection,
            data_base64=base64.b64encode(data).decode(),
        )
    )


def letter(data: bytes, reason: str = "not JSON") -> Letter:
    return Letter(TEN_NS, "c1", 5, reason, data)


def test_bytes_come_back_as_they_came(tmp_path: Path) -> None:
    values = [b"", bytes(range(256)), "é".encode(), b'{"channel":5}']
    store(tmp_path, 0, [message(data) for data in values], DEAD)
    found = [*iter_letters(tmp_path, *EVER)]
    assert [each.data for each in found] == values
    assert found[0] == Letter(TEN_NS, "c1", None, "not JSON", b"")


def test_only_the_span_and_the_reason_asked_for(tmp_path: Path) -> None:
    stored = [message(b"%d" % n, f"Reason {n % 3}", TEN_NS + n * MINUTE_NS) for n in range(12)]
    store(tmp_path, 0, stored, DEAD)
    span = (TEN_NS + 3 * MINUTE_NS, TEN_NS + 9 * MINUTE_NS)
    assert [each.data for each in iter_letters(tmp_path, *span)] == [b"3", b"4", b"5", b"6", b"7", b"8"]
    assert [each.data for each in iter_letters(tmp_path, *span, reason="reason 1")] == [b"4", b"7"]


def test_many_files_are_read_in_parts_and_nothing_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1)
    for partition in range(2):
        for first in range(0, 40, 10):
            values = [
                message(b"%d %d" % (partition, n), at_ns=TEN_NS + (n + partition) * MINUTE_NS)
                for n in range(first, first + 10)
            ]
            store(tmp_path, first, values, DEAD, partition)
    found = [each.data for each in iter_letters(tmp_path, *EVER)]
    assert len(found) == 80
    assert set(found) == {b"%d %d" % (partition, n) for partition in range(2) for n in range(40)}


def test_a_record_that_is_no_letter_is_one_all_the_same(tmp_path: Path) -> None:
    store(tmp_path, 0, [message(b"x"), b"\xff what is this"], DEAD)
    _, odd = iter_letters(tmp_path, *EVER)
    assert (odd.data, odd.connection_id) == (b"\xff what is this", "")
    assert "not a message of ours" in odd.reason


def test_no_storage_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    assert [*iter_letters(tmp_path, *EVER)] == []
    with pytest.raises(ArchiveError, match="nothing was recorded there"):
        next(iter_letters(tmp_path / "absent", *EVER))


def test_classes_are_counted_commonest_first(tmp_path: Path) -> None:
    few = [Letter(TEN_NS + n, f"c{n}", None, f"not a frame (byte {n})", b"12345") for n in range(2)]
    many = [Letter(TEN_NS, "c", n, entry_reason("ticker", 0, n, "entry: bad"), b"1") for n in range(3)]
    report = survey(tmp_path, [*few, *many], keep=4, retry_at_ns=None, future_limit_ns=0)
    assert [
        (name, seen.letters, seen.bytes, len(seen.connections)) for name, seen in report.reasons.items()
    ] == [
        ("ticker: an entry: entry: bad", 3, 3, 1),
        ("not a frame (byte N)", 2, 10, 2),
    ]
    seen = report.reasons["not a frame (byte N)"]
    assert (seen.first_ns, seen.last_ns, seen.readable_now) == (TEN_NS, TEN_NS + 1, None)
    assert (report.letters, report.shown) == (5, [*few, *many][:4])


GOOD_ENTRY = msgspec.json.encode(entry())


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (letter(frame(0).encode()), None),
        (letter(b'{"type":"error","message":"x"}'), None),
        (letter(b"no json"), "not a frame"),
        (letter(GOOD_ENTRY, entry_reason("ticker", 0, 1, "entry: bad")), None),
        (letter(b'{"price":"1"}', entry_reason("ticker", 0, 1, "entry: bad")), "product_id"),
        (letter(GOOD_ENTRY, entry_reason("ticker", 0, 2**15, "more")), "more entries than raw storage"),
        (letter(frame(0).encode(), "odd (first 600000 of 700000 bytes)"), "of its 700000 bytes were kept"),
        # A whole frame, whatever its channel's name looks like.
        (letter(frame(0).encode(), "x: event 0, entry 0: no timestamp"), None),
    ],
)
def test_what_a_mended_parser_reads_is_readable(found: Letter, says: str | None) -> None:
    why = read_again(found, T0_NS, LIMIT_NS)
    assert why is None if says is None else says in (why or "")


def test_frames_of_a_clock_that_was_behind_become_readable() -> None:
    publisher = RememberingPublisher()
    connection = Connection("c1", publisher, FeedCounters(), LIMIT_NS)
    behind_ns = T0_NS - 7_200 * NS
    connection.on_frame(frame(0).encode(), behind_ns)
    (dead,) = publisher.dead
    found = Letter(behind_ns, "c1", 0, dead.reason, base64.b64decode(dead.data_base64))
    assert "7200 s ahead" in (read_again(found, behind_ns, LIMIT_NS) or "")
    assert read_again(found, T0_NS, LIMIT_NS) is None


def test_a_cut_letter_tells_how_much_came() -> None:
    publisher = RememberingPublisher()
    Connection("c1", publisher, FeedCounters(), LIMIT_NS).on_frame(b"x" * 700_000, T0_NS)
    (dead,) = publisher.dead
    found = Letter(T0_NS, "c1", None, dead.reason, base64.b64decode(dead.data_base64))
    assert (found.whole_bytes, len(found.data)) == (700_000, 600_000)
    assert "(first" not in found.reason_class


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain", "plain"),
        (b"\x1b[2Jgone\r\n", r"\x1b[2Jgone\r\n"),
        (b"\xff\x00", r"\xff\x00"),
        ("é中".encode(), "é中"),
        (b"x" * 90, "x" * 20 + "…"),
        ("中".encode() * 90, "中" * 20 + "…"),
    ],
)
def test_the_beginning_is_safe_to_print(data: bytes, shown: str) -> None:
    assert letter(data).beginning(20) == shown
    assert letter(data).beginning(20).isprintable()


def test_an_export_gives_back_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    given = [letter(b"\xff\n\x00"), letter('{"é":"\u2028"}'.encode())]
    assert [*exporting(given, file)] == given
    first, second = map(msgspec.json.decode, file.read_bytes().rstrip(b"\n").split(b"\n"))
    assert [base64.b64decode(line["data_base64"]) for line in (first, second)] == [
        each.data for each in given
    ]
    assert "text" not in first
    assert second["text"].encode() == given[1].data
    assert (first["connection_id"], first["sequence_num"], first["reason"]) == ("c1", 5, "not JSON")


def test_an_export_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    file = tmp_path / "out.ndjson"
    file.write_text("mine")
    letters = exporting([letter(b"1"), letter(b"2")], file)
    next(letters)
    letters.close()
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.ndjson"]
    with pytest.raises(ExportError, match=r"absent/out\.ndjson: cannot be written"):
        next(exporting([letter(b"1")], tmp_path / "absent" / "out.ndjson"))
