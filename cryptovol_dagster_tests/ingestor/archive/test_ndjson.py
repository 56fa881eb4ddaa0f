"""Rows as lines of JSON: every value comes back, and what is damaged is named."""

from __future__ import annotations

import io
import math
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptovol_dagster_tests.ingestor.archive.messages import QUOTE, TEN_NS, dead, event, tick, trade
from ingestor.archive import ndjson
from ingestor.archive.columns import column
from ingestor.archive.errors import ArchiveError
from ingestor.archive.layout import FileName, footer_path, is_ndjson, read_footer
from ingestor.archive.reader import RawReader
from ingestor.archive.rows import iter_rows, read_rows, row_writer
from ingestor.archive.schema import SCHEMAS, to_batch
from ingestor.archive.writer import OpenFile, mend
from ingestor.envelope import DEAD, EVENTS, TICKS, TRADES

VALUES = {
    pa.bool_(): st.booleans(),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.string(): st.text(st.characters(codec="utf-8")),
}


def stored(raw_dir: Path, values: list[bytes], topic: str = TICKS, first: int = 0) -> Path:
    file = OpenFile(raw_dir, topic, "abcd1234", 0, first, "ndjson")
    file.append(to_batch(topic, 0, first, values, lambda _: TEN_NS, None), 0)
    return file.publish()


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    schema = SCHEMAS[draw(st.sampled_from(sorted(SCHEMAS)))]
    rows = draw(st.integers(1, 20))
    arrays = [
        column(draw(st.lists(st.none() | VALUES[field.type], min_size=rows, max_size=rows)), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@settings(max_examples=40, deadline=None)
@given(tables(), st.integers(1, 25))
def test_every_value_comes_back(
    tmp_path_factory: pytest.TempPathFactory, table: pa.Table, batch_rows: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.ndjson"
    content = io.BytesIO()
    row_writer("ndjson", content, TICKS).write(table)
    path.write_bytes(content.getvalue())
    batches = list(iter_rows(path, table.column_names, batch_rows))
    assert pa.Table.from_batches(batches).equals(table)
    assert max(batch.num_rows for batch in batches) <= batch_rows
    assert SCHEMAS[ndjson.topic_of(path)] == table.schema
    some = table.column_names[::-2]
    assert read_rows(path, some).equals(table.select(some))


@pytest.mark.parametrize(
    ("topic", "values"),
    [
        (TICKS, [tick(TEN_NS, 5), b"\xff no tick", tick(TEN_NS + 9, 6, connection="c2")]),
        (TICKS, [b"\xff no tick"]),
        (TRADES, [trade(TEN_NS, 3), trade(TEN_NS, 4, entry=b'{"trade_id":"1"}')]),
        (EVENTS, [event("connected", TEN_NS), event("checkpoint", 5, "c1", TEN_NS + 2)]),
        (DEAD, [dead(TEN_NS), dead(TEN_NS + 1)]),
    ],
)
def test_without_its_footer_a_file_says_the_same(tmp_path: Path, topic: str, values: list[bytes]) -> None:
    path = stored(tmp_path, values, topic, first=7)
    footer = read_footer(path)
    footer_path(path).unlink()
    assert read_footer(path) == footer
    assert footer.last_offset == 6 + len(values)
    assert RawReader(tmp_path).count(topic, 0, 2**62) == len(values)
    mend(tmp_path / topic)
    assert footer_path(path).exists()
    assert read_footer(path) == footer


def test_a_line_is_the_record_with_its_entry_untouched(tmp_path: Path) -> None:
    (line,) = stored(tmp_path, [tick(TEN_NS, 5)]).read_text().splitlines()
    record = msgspec.json.decode(line)
    assert list(record) == SCHEMAS[TICKS].names
    assert record["payload"].encode() == QUOTE
    assert (record["sequence_num"], record["price"]) == (5, 67000.01)


def test_a_number_that_is_none_is_absent(tmp_path: Path) -> None:
    entry = b'{"product_id":"BTC-USD","price":"NaN","best_bid":"1e999","best_ask":"67000.02"}'
    path = stored(tmp_path, [tick(entry=entry)])
    assert read_rows(path, ["price", "best_bid"]).to_pylist() == [{"price": None, "best_bid": None}]
    assert "NaN" not in path.read_text().replace(r"\"NaN\"", "")
    assert math.isclose(read_rows(path, ["best_ask"])["best_ask"][0].as_py(), 67000.02)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "it has .* bytes, not"),
        (lambda content: content[: content.index(b"\n") + 1], "it has .* bytes, not"),
        (lambda content: b"", "it has 0 bytes, not"),
    ],
)
def test_a_shortened_file_is_noticed_by_its_footer(tmp_path: Path, damage: object, message: str) -> None:
    path = stored(tmp_path, [tick()] * 3)
    path.write_bytes(damage(path.read_bytes()))  # pyright: ignore[reportCallIssue]
    with pytest.raises(ArchiveError, match=f"{path.name} is damaged: {message}"):
        read_footer(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "line 3: "),
        (lambda content: content[:-1], "line 3 breaks off"),
        (
            lambda content: content.replace(b'"kafka_offset":1', b'"kafka_offset":8'),
            "lines from 1 on have other",
        ),
        (
            lambda content: content.replace(b'"sequence_num":0', b'"sequence_num":99999999999999999999'),
            "lines 1 to 3",
        ),
        (
            lambda content: content.replace(b'"kafka_partition":0', b'"kafka_partition":1'),
            "have other offsets",
        ),
        (lambda content: content.replace(b'"price":67000.01', b'"price":"a"', 2), "line 1: Expected `float"),
        (lambda content: b"", r"not written by raw storage"),
        (lambda content: b'{"a":1}\n', r"not written by raw storage"),
    ],
)
def test_damage_is_named_where_it_is(tmp_path: Path, damage: object, message: str) -> None:
    path = stored(tmp_path, [tick()] * 3)
    footer_path(path).unlink()
    path.write_bytes(damage(path.read_bytes()))  # pyright: ignore[reportCallIssue]

    def read() -> None:
        read_footer(path)
        read_rows(path, SCHEMAS[TICKS].names)

    with pytest.raises(ArchiveError, match=message) as caught:
        read()
    assert str(path) in str(caught.value)


def test_a_damaged_footer_is_named_and_a_damaged_file_does_not_stop_mending(tmp_path: Path) -> None:
    path, other = stored(tmp_path, [tick()]), stored(tmp_path, [tick()], first=9)
    footer_path(path).write_bytes(b"{")
    with pytest.raises(ArchiveError, match=f"{footer_path(path).name} is damaged .*recreated once deleted"):
        read_footer(path)
    for each in (path, other):
        footer_path(each).unlink()
    path.write_bytes(b"no line of ours\n")
    mend(tmp_path / TICKS)
    assert [footer_path(each).exists() for each in (path, other)] == [False, True]


def test_a_format_is_known_by_name_or_content(tmp_path: Path) -> None:
    path = stored(tmp_path, [tick()])
    assert is_ndjson(path)
    assert is_ndjson(path.rename(tmp_path / "renamed"))
    assert not is_ndjson(tmp_path / "any.parquet")
    assert FileName.parse(path.name) == FileName("abcd1234", 0, 0)
    assert FileName.parse(footer_path(path).name) is None
