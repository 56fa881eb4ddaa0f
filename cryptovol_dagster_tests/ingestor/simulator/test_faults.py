"""The fault script."""

from __future__ import annotations

import pytest

from ingestor.simulator.faults import (
    Damage,
    Disconnect,
    Drift,
    FaultScriptError,
    Gap,
    Giant,
    LateAck,
    Malformed,
    NoHeartbeats,
    Refuse,
    Repeat,
    Silence,
    Skew,
    UnknownChannel,
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


def test_every_kind_of_what_is_sent() -> None:
    script = (
        "refuse@9s:503:2; no_heartbeats@8s:20s; malformed@1s:not_utf8; giant@2s:17000000;"
        "unknown_channel@3s:4; drift@4s; skew@5s:-2.5s; skew@6s:0s; late_ack@7s:3s; late_ack:0.5s"
    )
    assert parse_faults(script) == (
        LateAck(0, S // 2),
        Malformed(S, Damage.NOT_UTF8),
        Giant(2 * S, 17_000_000),
        UnknownChannel(3 * S, 4),
        Drift(4 * S),
        Skew(5 * S, -5 * S // 2),
        Skew(6 * S, 0),
        LateAck(7 * S, 3 * S),
        NoHeartbeats(8 * S, 20 * S),
        Refuse(9 * S, 503, 2),
    )


def test_defaults() -> None:
    assert parse_faults("gap@1s; disconnect@2s") == (Gap(S, 1), Disconnect(2 * S, 1006))
    assert parse_faults("malformed@1s; unknown_channel@2s; refuse@3s; refuse@4s:503") == (
        Malformed(S, Damage.TRUNCATED),
        UnknownChannel(2 * S, 1),
        Refuse(3 * S, 429, 1),
        Refuse(4 * S, 503, 1),
    )
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
        ("repeat", "expected kind@<seconds>s"),
        ("no_heartbeats@5s", "no_heartbeats needs a duration"),
        ("malformed@5s:mangled", "'mangled' is not a kind of damage (truncated, not_json"),
        ("giant@5s", "'' is not a number of bytes"),
        ("giant@5s:999", "'999' is not a number of bytes (1000 to "),
        ("unknown_channel@5s:-1", "'-1' is not a number of frames"),
        ("drift@5s:1", "drift takes no argument"),
        ("skew@5s", "skew needs seconds"),
        ("skew@5s:2", "skew needs seconds"),
        ("late_ack", "late_ack needs a delay"),
        ("late_ack:-3s", "late_ack needs a delay"),
        ("late_ack:0s", "late_ack needs a delay"),
        ("refuse@5s:200", "'200' is not an HTTP status that refuses"),
        ("refuse@5s:429:0", "'0' is not a number of handshakes"),
        ("refuse@5s:429:1:1", "'1:1' is not a number of handshakes"),
    ],
)
def test_a_bad_script_is_one_clear_line(script: str, message: str) -> None:
    with pytest.raises(FaultScriptError) as caught:
        parse_faults(script)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
