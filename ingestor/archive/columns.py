"""Lists of Python values → Arrow columns, by way of NumPy and bytes.

`pyarrow.array` would do the same, but its first call imports pandas: a second of start and tens of megabytes
that the recorder has no use for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

_NUMPY_TYPES = {pa.int16(): np.int16, pa.int32(): np.int32, pa.int64(): np.int64, pa.float64(): np.float64}


def column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Build an Arrow column of integers, float64, booleans or strings (str or UTF-8 bytes); None is null.

    Raises:
        OverflowError: an integer does not fit.
        pyarrow.ArrowInvalid: bytes are not UTF-8.
    """
    if kind == pa.string():
        return _strings(values)
    if kind == pa.float64():
        return _finite_floats(values)
    if kind == pa.bool_():
        return _booleans(values)
    return _integers(values, kind)


def as_int64(array: Any) -> np.ndarray:
    """Return the values of an int64 column without nulls, not copied."""
    return np.frombuffer(array.buffers()[1], np.int64, len(array), array.offset * 8)


def mask_of(flags: np.ndarray) -> pa.Array:
    """Build a boolean column, for `Table.filter`."""
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, _bitmap(flags)])


def _integers(values: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    if None in values:
        valid = np.array([value is not None for value in values])
        return _fixed(np.array([value or 0 for value in values], _NUMPY_TYPES[kind]), kind, valid)
    return _fixed(np.array(values, _NUMPY_TYPES[kind]), kind)


def _finite_floats(values: Sequence[float | None]) -> pa.Array:
    numbers = np.array(values, np.float64)  # None becomes NaN
    finite = np.isfinite(numbers)
    return _fixed(numbers, pa.float64(), None if finite.all() else finite)


def _booleans(values: Sequence[bool | None]) -> pa.Array:
    valid = np.array([value is not None for value in values]) if None in values else None
    flags = np.array([bool(value) for value in values], np.bool_)
    return pa.Array.from_buffers(pa.bool_(), len(flags), [_bitmap(valid), _bitmap(flags)])


def _strings(values: Sequence[str | bytes | None]) -> pa.Array:
    valid = np.array([value is not None for value in values]) if None in values else None
    encoded = [value.encode() if isinstance(value, str) else value or b"" for value in values]
    offsets = np.fromiter(accumulate(map(len, encoded), initial=0), np.int32, len(encoded) + 1)
    buffers = [_bitmap(valid), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    strings = pa.Array.from_buffers(pa.string(), len(encoded), buffers)
    strings.validate(full=True)
    return strings


def _fixed(numbers: np.ndarray, kind: pa.DataType, valid: np.ndarray | None = None) -> pa.Array:
    return pa.Array.from_buffers(kind, len(numbers), [_bitmap(valid), pa.py_buffer(numbers)])


def _bitmap(valid: np.ndarray | None) -> pa.Buffer | None:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
