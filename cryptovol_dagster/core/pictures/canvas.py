"""Shared parts of all pictures: canvas, title, time axis, colours, PNG bytes.

Belongs here: appearance. Does not belong here: the content of a picture. matplotlib is imported when one is
drawn, never before.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_DPI = 90
#: Enough for lines, a few hues and their blends: more colours only increase the file.
_COLOURS = 128
#: Colours of things without one of their own, in order (Okabe & Ito, which colour-blind readers distinguish).
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def canvas(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure (size in inches) and its panels; a single panel is not an array.

    Examples:
        >>> figure, panels = canvas(6, 4, rows=2)
        >>> len(figure.axes), panels.shape
        (2, (2,))
    """
    # `Figure` and not pyplot: no global state, so pictures can be drawn in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, **options)
    for axes in np.atleast_1d(panels).flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def time_axis(axes: Axes) -> None:
    """Label the horizontal axis with UTC clock times."""
    from matplotlib.dates import AutoDateLocator, DateFormatter

    axes.xaxis.set_major_locator(AutoDateLocator(tz="UTC"))
    axes.xaxis.set_major_formatter(DateFormatter("%H:%M", tz="UTC"))


def title(axes: Axes, what: str, measured_on: str) -> None:
    """Write a title over a panel, and below it, smaller, the rows it was measured on."""
    lines = measured_on.count("\n") + 1
    axes.set_title(what + "\n" * lines, loc="left", fontsize=11, fontweight="bold")
    axes.text(0, 1.02, measured_on, transform=axes.transAxes, fontsize=8, color="#555555")


def clock(ns: int) -> str:
    """Return integer nanoseconds UTC as text to the minute.

    Examples:
        >>> clock(1_775_000_000_000_000_000)
        '2026-03-31 23:33'
    """
    return f"{pd.Timestamp(ns, unit='ns', tz='UTC'):%Y-%m-%d %H:%M}"


def log_bins(values: NDArray[np.float64], count: int = 60) -> NDArray[np.float64]:
    """Return the edges of `count` − 1 bins, equally wide on a log axis, over the positive values.

    Examples:
        >>> log_bins(np.array([0.0, 1.0, 100.0]), count=3)
        array([  1.        ,  10.00499875, 100.1       ])
    """
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-4, 1.0)
    return np.geomspace(low, max(high, low * 1.01) * 1.001, count)


def png(figure: Figure) -> bytes:
    """Render a figure with a palette: a third of the size, because event logs keep pictures for ever."""
    from PIL import Image

    rendered = io.BytesIO()
    figure.savefig(rendered, format="png", dpi=_DPI)
    buffer = io.BytesIO()
    with Image.open(rendered) as image:
        palette = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        palette.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
