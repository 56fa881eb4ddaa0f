"""The latest copies that people open without Dagster: reports and exported models.

Belongs here: where each copy lies, and that it appears in one step. Does not belong here: what is in them.
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
        """Return the copies of a chain: those of the seconds lie in `reports/` itself, others in a folder."""
        return self if chain == SECONDS else Reports(self.reports_dir / chain, self.artifacts_dir)

    @property
    def evaluation(self) -> Path:
        """Where the newest evaluation lies."""
        return self.reports_dir / "model_eval.json"

    @property
    def evaluation_page(self) -> Path:
        """Where the page of the newest evaluation lies."""
        return self.reports_dir / "evaluation.html"

    @property
    def model_card(self) -> Path:
        """Where the newest model card lies."""
        return self.reports_dir / "model_card_v1.md"

    @property
    def decision(self) -> Path:
        """Where the newest decision about the champion lies."""
        return self.reports_dir / "decision.json"

    @property
    def index(self) -> Path:
        """Where the page over all reports lies."""
        return self.reports_dir / "index.html"

    def evidently(self, kind: str, suffix: str) -> Path:
        """Where the newest Evidently report of a kind lies (`suffix`: ``html`` or ``json``).

        That of training against test keeps the name people know, ``evidently_report``.
        """
        name = "evidently_report" if kind == "train_test_report" else kind
        return self.reports_dir / "evidently" / f"{name}.{suffix}"

    def plot(self, name: str) -> Path:
        """Where the newest picture of a kind lies, e.g. ``episode``."""
        return self.reports_dir / "plots" / f"{name}.png"

    def model(self, timescale: str, model: str) -> Path:
        """Where the newest model of a kind is exported."""
        return self.artifacts_dir / f"{timescale}-{model}.zip"

    def graph(self, timescale: str, model: str) -> Path:
        """Where the newest model of a kind is exported as an ONNX graph."""
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
