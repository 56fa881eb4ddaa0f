"""What every picture shares: panels, bins, times, PNG bytes with a palette."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cryptovol_dagster.core.pictures.canvas import canvas, clock, log_bins, png
from cryptovol_dagster.core.pictures.hour import draw_bars
from cryptovol_dagster_tests.core.clustered_market import make_bars


def drawn_line() -> bytes:
    figure, axes = canvas(3, 2)
    axes.plot([0, 1], [0, 1])
    return png(figure)


def test_a_png_has_a_palette_and_the_same_bytes_each_time() -> None:
    drawn = drawn_line()
    with Image.open(io.BytesIO(drawn)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "P", (270, 180))
    assert drawn_line() == drawn


def test_panels_come_in_rows() -> None:
    _, panels = canvas(3, 2, rows=2)
    assert panels.shape == (2,)


@pytest.mark.parametrize("values", [[1e-3, 1.0, 100.0], [5.0], [0.0, -1.0], []])
def test_log_bins_rise_and_hold_every_positive_value(values: list[float]) -> None:
    edges, given = log_bins(np.array(values, dtype=np.float64), 20), np.array(values)
    assert edges.shape == (20,)
    assert (np.diff(edges) > 0).all()
    assert ((given <= 0) | ((edges[0] <= given) & (given <= edges[-1]))).all()


def test_times_are_written_to_the_minute_in_utc() -> None:
    assert clock(1_775_273_459_999_999_999) == "2026-04-04 03:30"


def test_an_hour_of_bars_is_drawn_and_one_without_prices_too() -> None:
    bars = make_bars(600)
    drawn = draw_bars(bars)
    assert drawn.startswith(b"\x89PNG")
    bars.close[:] = np.nan
    assert draw_bars(bars) not in (b"", drawn)
