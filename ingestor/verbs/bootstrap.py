"""Broker of a verb that observes from outside: the configured one, or that of ``--bootstrap``."""

from __future__ import annotations

import click

from ingestor.settings.sections import KafkaSettings

bootstrap_option = click.option(
    "--bootstrap", metavar="HOST:PORT", help="Broker instead of the configured one."
)


def outside_kafka(kafka: KafkaSettings, bootstrap: str | None) -> KafkaSettings:
    """Return the settings to reach a broker of another process.

    Raises:
        click.UsageError: the configured one is embedded, so it lives inside the recorder.
    """
    if bootstrap is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap})
    if kafka.is_embedded:
        raise click.UsageError(
            "kafka.bootstrap_servers is 'embedded': that broker lives inside `cryptovol ingest`, "
            "which prints its address; pass it with --bootstrap HOST:PORT"
        )
    return kafka
