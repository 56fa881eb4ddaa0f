"""The spill is a queue, whatever is put in and taken out in whatever order, and leaves nothing on disk."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingestor.kafka.spill import Spill, Spilled

CHUNK = 1_000


def message(number: int, size: int = 50) -> Spilled:
    return "ticks.raw", b"BTC-USD", b"%d-" % number + b"x" * size, number


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["push", "pop", "back"]), st.integers(1, 40), st.integers(0, 600)),
        max_size=60,
    )
)
def test_any_interleaving_is_first_in_first_out(steps: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spill, model, number = Spill(Path(folder), 10**9, chunk_bytes=CHUNK), deque[Spilled](), 0
        for action, count, size in steps:
            if action == "push":
                for _ in range(count):
                    spill.append(message(number, size))
                    model.append(message(number, size))
                    number += 1
            elif action == "pop":
                for _ in range(min(count, len(model))):
                    assert spill.first() == model[0]
                    assert spill.pop() == model.popleft()
            else:
                back = [message(-index, size) for index in range(count)]
                spill.put_back(back)
                model.extendleft(reversed(back))
            assert len(spill) == len(model)
            assert spill.held_bytes == sum(len(each[1]) + len(each[2]) + 70 for each in model)
            # In memory stand at most a file's worth of newest messages.
            assert spill._newest_bytes < CHUNK
            assert os.listdir(folder) == []  # its files have no names
        assert [spill.pop() for _ in range(len(spill))] == list(model)
        assert not spill._files
        spill.close()


def test_an_empty_spill_has_nothing_to_give(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 100)
    assert not spill
    assert not spill.is_full
    with pytest.raises(IndexError):
        spill.pop()


def test_its_bound_is_told_and_what_is_given_beyond_it_is_kept(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 5_000, chunk_bytes=CHUNK)
    number = 0
    while not spill.is_full:
        spill.append(message(number))
        number += 1
    assert 5_000 <= spill.held_bytes < 5_200
    spill.append(message(number))
    assert [spill.pop()[3] for _ in range(number + 1)] == list(range(number + 1))
    assert not spill.is_full


def test_without_room_the_first_message_fills_it() -> None:
    spill = Spill(None, 0, chunk_bytes=CHUNK)
    for number in range(100):
        spill.append(message(number))
        assert spill.is_full
    assert [spill.pop()[3] for _ in range(100)] == list(range(100))
    assert not spill.is_full


def test_a_folder_that_cannot_be_written_is_a_full_spill_and_loses_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "data"
    in_the_way.write_text("a file")
    spill = Spill(in_the_way, 10**9, chunk_bytes=CHUNK)
    number = 0
    while not spill.is_full:
        spill.append(message(number))
        number += 1
    assert "data cannot take spilled messages: " in spill.error
    assert spill.held_bytes < 2 * CHUNK
    in_the_way.unlink()
    spill.write()
    assert not spill.is_full
    spill.append(message(number))
    assert [spill.pop()[3] for _ in range(number + 1)] == list(range(number + 1))


def test_a_full_disk_in_the_middle_of_a_file_loses_nothing(tmp_path: Path) -> None:
    """The kernel refuses the second half of a write, as a disk does that fills up."""
    spill = Spill(tmp_path, 10**9, chunk_bytes=CHUNK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    number = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK // 2, limits[1]))
        while not spill.is_full:
            spill.append(message(number))
            number += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large" in spill.error
    assert [spill.pop()[3] for _ in range(number)] == list(range(number))
    assert not spill.error


def test_closing_forgets_everything(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 10**9, chunk_bytes=CHUNK)
    for number in range(100):
        spill.append(message(number))
    assert spill._files
    spill.close()
    assert (len(spill), spill.held_bytes, list(spill._files)) == (0, 0, [])
