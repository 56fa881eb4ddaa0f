"""Frames of the exchange with something wrong in them, for property tests.

JSON is held as nodes that keep what `json` would lose: objects are lists of pairs, so that a key may come
twice, and a `Literal` is text put down as it is, whether JSON allows it or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st


@dataclass
class Literal:
    text: str


@dataclass
class Array:
    items: list[Node] = field(default_factory=list)


@dataclass
class Object:
    pairs: list[tuple[str, Node]] = field(default_factory=list)


Node = Literal | Array | Object

#: What a field might suddenly be: every type, what only some parsers take, and what breaks careless ones.
ODD = (
    *("null", "true", "0", "-1", "1.5", '""', '"x"', "[]", "{}", "[5]", '{"a":{}}', "[[]]"),
    *("NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "+1", ".5", "undefined", "'x'", ""),
    *(str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64), "9" * 400, "-" + "9" * 400),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\u001b[2J\\n"', '"\\q"', '"\x01"', '"é中😀"'),
    *(f'"{"x" * 65}"', f'"{"é" * 64}"', f'"{"y" * 5_000}"'),
    *("[" * depth + "]" * depth for depth in (60, 400, 900, 5_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (60, 400, 900)),
    *('"1677-01-01T00:00:00Z"', '"2261-12-31T23:59:59Z"', '"2026-05-01T10:00:60Z"', '"2026-05-01"'),
    *('"snapshot"', '"BTC-USD"', '"error"', '"ticker"', '"NaN"', '"-1"'),
)
#: Bytes that are no frame at all.
NO_FRAME = (
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"<html></html>",
    b"{}",
    b"[]",
    b"[" * 9_999,
)


def node_of(value: Any) -> Node:
    if isinstance(value, dict):
        return Object([(key, node_of(item)) for key, item in value.items()])
    if isinstance(value, list):
        return Array([node_of(item) for item in value])
    return Literal(json.dumps(value))


def render(node: Node) -> str:
    if isinstance(node, Literal):
        return node.text
    if isinstance(node, Array):
        return f"[{','.join(map(render, node.items))}]"
    return "{" + ",".join(f"{json.dumps(key)}:{render(value)}" for key, value in node.pairs) + "}"


def _places(node: Node) -> Iterator[tuple[Array | Object, int]]:
    """Every place in the tree: a container and the index of one of its children."""
    if isinstance(node, Literal):
        return
    children = node.items if isinstance(node, Array) else [value for _, value in node.pairs]
    for index, child in enumerate(children):
        yield node, index
        yield from _places(child)


def _drop(container: Array | Object, index: int, draw: st.DrawFn) -> None:
    del _children(container)[index]


def _duplicate(container: Array | Object, index: int, draw: st.DrawFn) -> None:
    children = _children(container)
    children.insert(draw(st.integers(0, len(children))), children[index])


def _retype(container: Array | Object, index: int, draw: st.DrawFn) -> None:
    odd = Literal(draw(st.sampled_from(ODD)))
    if isinstance(container, Array):
        container.items[index] = odd
    else:
        container.pairs[index] = container.pairs[index][0], odd


def _insert(container: Array | Object, index: int, draw: st.DrawFn) -> None:
    odd = Literal(draw(st.sampled_from(ODD)))
    if isinstance(container, Array):
        container.items.insert(index, odd)
    else:
        # A name that is already there comes twice.
        names = st.sampled_from(
            [key for key, _ in container.pairs] + ["of_tomorrow", "", "client_id", "message"]
        )
        container.pairs.insert(index, (draw(names), odd))


def _rename(container: Array | Object, index: int, draw: st.DrawFn) -> None:
    if isinstance(container, Object):
        name = draw(
            st.sampled_from(["of_tomorrow", "channel", "sequence_num", "product_id"]) | st.text(max_size=9)
        )
        container.pairs[index] = name, container.pairs[index][1]


def _children(container: Array | Object) -> list[Any]:
    return container.items if isinstance(container, Array) else container.pairs


_CHANGES: tuple[Callable[[Array | Object, int, st.DrawFn], None], ...] = (
    _drop,
    _duplicate,
    _retype,
    _retype,
    _insert,
    _rename,
)


def every_odd_frame(content: dict[str, Any], *, sequence: bool = True) -> Iterator[bytes]:
    """A frame for every odd value in every place of `content`; its number's place only with `sequence`."""
    root = node_of(content)
    for container, index in list(_places(root)):
        children = _children(container)
        kept = children[index]
        if not sequence and isinstance(kept, tuple) and kept[0] == "sequence_num":
            continue
        for text in ODD:
            odd = Literal(text)
            children[index] = (kept[0], odd) if isinstance(kept, tuple) else odd
            yield render(root).encode("utf-8", "surrogatepass")
        children[index] = kept


@st.composite
def changed_json(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """A frame in which one to three nodes were dropped, doubled, given another type, added or renamed."""
    root = node_of(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        if places:
            container, index = draw(st.sampled_from(places))
            draw(st.sampled_from(_CHANGES))(container, index, draw)
    return render(root).encode("utf-8", "surrogatepass")


@st.composite
def changed_bytes(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """A frame that was cut, or of which some bytes were flipped, doubled or lost."""
    data = bytearray(render(node_of(content)).encode())
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = begin + draw(st.integers(0, 20))
        data[begin:end] = draw(st.binary(max_size=4) | st.just(bytes(data[begin:end] * 2)) | st.just(b""))
    return bytes(data)
