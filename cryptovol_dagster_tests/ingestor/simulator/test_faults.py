"""The fault script."""

from __future__ import annotations

import pytest

from ingestor.simulator.faults import (
    Disconnect,
    FaultScriptError,
    Gap,
    Repeat,
    Silence,
    parse_faults,
)

S = 1_000_000_000


def test_every_kind_in_order_of_time() -> None:
    script = "silence@5400s:12s; gap@600s:3 ;repeat@900.25s; disconnect@1800s:1006;disconnect@3600s:1001;"
    assert parse_faults(script) == (
        Gap(600 * S, 3),
        Repeat(900 * S + S // 4),
        Disconnect(1800 * S, 1006),
        Disconnect(3600 * S, 1001),
        Silence(5400 * S, 12 * S),
    )


def test_defaults() -> None:
    assert parse_faults("gap@1s; disconnect@2s") == (Gap(S, 1), Disconnect(2 * S, 1006))
    assert parse_faults(" ; ") == ()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("meteor@5s", "unknown kind 'meteor'"),
        ("gap", "expected kind@<seconds>s"),
        ("gap@5", "expected kind@<seconds>s"),
        ("gap@-5s", "expected kind@<seconds>s"),
        ("gap@5s:0", "'0' is not a number of frames"),
        ("gap@5s:x", "'x' is not a number of frames"),
        ("repeat@5s:2", "repeat takes no argument"),
        ("silence@5s", "silence needs a duration"),
        ("silence@5s:0s", "silence needs a duration"),
        ("silence@5s:12", "silence needs a duration"),
        ("disconnect@5s:999", "not a close code"),
        ("disconnect@5s:1005", "may not be sent"),
        ("disconnect@5s:1500", "may not be sent"),
        ("gap@1s:1; gap@2s:3:4", "gap@2s:3:4"),
    ],
)
def test_a_bad_script_is_one_clear_line(script: str, message: str) -> None:
    with pytest.raises(FaultScriptError) as caught:
        parse_faults(script)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
