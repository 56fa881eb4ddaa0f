"""The latest copies that people open without Dagster: reports and exported models.

Belongs here: paths of the copies, and their replacement in one step. Does not belong here: their content.
The history by partition stays in the lake.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptovol_dagster.core.specs import SECONDS
from cryptovol_dagster.lake.atomic import replace_file
from ingestor.errors import CryptovolError


class ReportError(CryptovolError):
    """A report cannot be written; the message is one line that names the file."""


@dataclass(frozen=True)
class Reports:
    """Folders of the latest copies."""

    reports_dir: Path
    artifacts_dir: Path

    def of(self, chain: str) -> Reports:
        """Return the copies of a chain: those of the seconds are in `reports/` itself, others in a folder."""
        return self if chain == SECONDS else Reports(self.reports_dir / chain, self.artifacts_dir)

    @property
    def evaluation(self) -> Path:
        """Path of the newest evaluation."""
        return self.reports_dir / "model_eval.json"

    @property
    def evaluation_page(self) -> Path:
        """Path of the page of the newest evaluation."""
        return self.reports_dir / "evaluation.html"

    @property
    def model_card(self) -> Path:
        """Path of the newest model card."""
        return self.reports_dir / "model_card_v1.md"

    @property
    def decision(self) -> Path:
        """Path of the newest decision about the champion."""
        return self.reports_dir / "decision.json"

    @property
    def index(self) -> Path:
        """Path of the page of all reports."""
        return self.reports_dir / "index.html"

    def evidently(self, kind: str, suffix: str) -> Path:
        """Return the path of the newest Evidently report of a kind (`suffix`: ``html`` or ``json``).

        The comparison of training and test keeps its former name, ``evidently_report``.
        """
        name = "evidently_report" if kind == "train_test_report" else kind
        return self.reports_dir / "evidently" / f"{name}.{suffix}"

    def plot(self, name: str) -> Path:
        """Return the path of the newest picture of a kind, e.g. ``episode``."""
        return self.reports_dir / "plots" / f"{name}.png"

    def model(self, timescale: str, model: str) -> Path:
        """Return the path of the newest exported model of a kind."""
        return self.artifacts_dir / f"{timescale}-{model}.zip"

    def graph(self, timescale: str, model: str) -> Path:
        """Return the path of the newest exported ONNX graph of a kind."""
        return self.artifacts_dir / f"{timescale}-{model}.onnx"

    def write(self, path: Path, content: bytes) -> Path:
        """Replace a latest copy in one step.

        Raises:
            ReportError: the folder cannot be written.
        """
        try:
            replace_file(path, content)
        except OSError as error:
            raise ReportError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path
