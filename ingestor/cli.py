"""The recorder's command: its verbs, imported when one is used (`python -m ingestor`)."""

from __future__ import annotations

import click

from ingestor.cli_group import VerbGroup

#: In the order in which a new user needs them.
VERBS = {
    "config": "ingestor.verbs.config:config",
    "ingest": "ingestor.verbs.ingest:ingest",
    "check-stream": "ingestor.verbs.check_stream:check_stream",
    "simulate": "ingestor.verbs.simulate:simulate",
    "audit": "ingestor.verbs.audit:audit",
    "dead-letters": "ingestor.verbs.dead_letters:dead_letters",
    "convert-raw": "ingestor.verbs.convert_raw:convert_raw",
}


@click.group(
    cls=VerbGroup,
    elsewhere=VERBS,
    unknown_verb="This is the recorder alone: the pipeline's verbs are in the pipeline's image.",
)
def cli() -> None:
    """Record a crypto market: exchange → Kafka → raw storage."""
