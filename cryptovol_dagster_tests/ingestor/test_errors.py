"""Messages of errors, shortened."""

from __future__ import annotations

import pytest

from ingestor.errors import first_line, one_line


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
