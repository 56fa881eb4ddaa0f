"""Messages of errors, shortened."""

from __future__ import annotations

import pytest

from ingestor.errors import did_you_mean, first_line, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  indented \nrest"), "indented "),
        (ValueError("  "), "ValueError"),
        (KeyError(), "KeyError"),
    ],
)
def test_the_first_line_says_something(error: BaseException, line: str) -> None:
    assert first_line(error) == line


def test_several_lines_become_one() -> None:
    assert one_line("  a\n\tb  c\n") == "a b c"


@pytest.mark.parametrize(
    ("word", "known", "asked"),
    [
        ("statsu", ("status", "up"), " Did you mean 'status'?"),
        ("btc-usd", ("BTC-USD", "ETH-USD"), " Did you mean 'BTC-USD'?"),
        ("minute_h5", ("seconds", "minutes_h15", "minutes_h5"), " Did you mean 'minutes_h5'?"),
        ("prophet", ("ewma", "xgboost"), ""),
        ("anything", (), ""),
    ],
)
def test_a_similar_name_is_asked_for(word: str, known: tuple[str, ...], asked: str) -> None:
    assert did_you_mean(word, known) == asked
