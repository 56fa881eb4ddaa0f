"""What every picture shares: canvas, title, time axis, colours, PNG bytes.

Belongs here: looks. Does not belong here: what a picture shows. matplotlib is imported when one is drawn,
never before.
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
#: Lines, a few hues and their blends: more colours only make the file larger.
_COLOURS = 128
#: Per second σ as basis points: people read 1.3 bps, not 1.3e-4.
#: Colours of things without one of their own, in order (Okabe & Ito, told apart by colour-blind readers).
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def canvas(
    width: float, height: float, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Make a figure (inches) and its panels; a single panel is no array."""
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
    """Put what is shown, and below it, smaller, what it was measured on, over a panel."""
    lines = measured_on.count("\n") + 1
    axes.set_title(what + "\n" * lines, loc="left", fontsize=11, fontweight="bold")
    axes.text(0, 1.02, measured_on, transform=axes.transAxes, fontsize=8, color="#555555")


def clock(ns: int) -> str:
    """Write integer nanoseconds UTC to the minute."""
    return f"{pd.Timestamp(ns, unit='ns', tz='UTC'):%Y-%m-%d %H:%M}"


def log_bins(values: NDArray[np.float64], count: int = 60) -> NDArray[np.float64]:
    """Edges of `count` − 1 bins, equally wide on a log axis, over the positive values."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1e-4, 1.0)
    return np.geomspace(low, max(high, low * 1.01) * 1.001, count)


def png(figure: Figure) -> bytes:
    """Render a figure, with a palette: a third of the size, and event logs keep pictures for ever."""
    from PIL import Image

    rendered = io.BytesIO()
    figure.savefig(rendered, format="png", dpi=_DPI)
    buffer = io.BytesIO()
    with Image.open(rendered) as image:
        palette = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        palette.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
