"""One line of a benchmark's table, and the machine it was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A measured number beside its target.

    Attributes:
        what: was measured.
        measured: the number.
        target: to reach, or not to exceed where `at_most`.
        unit: of both.
        detail: what the number was computed from.
        at_most: whether smaller is better.
    """

    what: str
    measured: float
    target: float
    unit: str
    detail: str
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the target is met."""
        return self.measured <= self.target if self.at_most else self.measured >= self.target

    @property
    def figure(self) -> str:
        """The number to three significant digits, with its unit."""
        return f"{_rounded(self.measured)} {self.unit}"

    @property
    def bound(self) -> str:
        """The target with its unit."""
        return f"{'≤' if self.at_most else '≥'} {_rounded(self.target)} {self.unit}"

    def row(self) -> str:
        """Return the line as it is printed."""
        verdict = "PASS" if self.is_met else "BELOW"
        return f"{verdict:5} {self.what:42} {self.figure:>20} {self.bound:>22}   {self.detail}"


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1_000 else f"{number:.3g}"


def machine() -> str:
    """Return what this runs on: processor, cores, load, versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pandas", "polars"))
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {libraries}"
    )
