"""Tables of the verbs: whole in a pipe, and with whole numbers on any terminal."""

from __future__ import annotations

import sys

import pytest

from ingestor.verbs.output import print_table

COLUMNS, WORDS = ("model", "AP", "why"), ("model", "why")
LONG = "the newest hour holds too few spikes " * 10
ROWS = [["[bold]xgboost", "0.123456789", LONG.strip()], ["ewma", "–", ""]]


def test_in_a_pipe_a_row_is_a_line_however_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_table(COLUMNS, ROWS, words=WORDS)
    assert capsys.readouterr().out.splitlines() == [
        "model                   AP  why",
        f"[bold]xgboost  0.123456789  {LONG.strip()}",
        "ewma                     –",
    ]


@pytest.mark.parametrize("columns", [12, 40])
def test_a_narrow_terminal_folds_words_and_never_numbers(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_table(COLUMNS, ROWS, words=WORDS)
    lines = capsys.readouterr().out.splitlines()
    assert sum("0.123456789" in line for line in lines) == 1
    assert len(lines) > len(ROWS) + 1
    words = [word for line in lines for word in line.split()]
    assert [words.count(word) for word in ("newest", "spikes")] == [10, 10]
    assert "…" not in "".join(lines)


@pytest.mark.parametrize("columns", [20, 60, 80])
def test_a_narrow_terminal_cuts_no_word(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    link = "http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef0123456789abcdef"
    rows = [["2026-04-04-03:00", "INSUFFICIENT_DATA", link, LONG.strip()]] * 2
    print_table(("hour", "verdict", "run", "why"), rows, words=("hour", "verdict", "run", "why"))
    words = capsys.readouterr().out.split()
    assert [words.count(word) for word in rows[0][:3]] == [2, 2, 2]
