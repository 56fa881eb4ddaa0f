"""A process that only archives: ``run_archive <servers> <prefix> <data dir> <format> [scores]``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ingestor.archive.collection import FEED, SCORES
from ingestor.archive.consumer import Archive
from ingestor.kafka.broker import connect
from ingestor.settings.sections import KafkaSettings, StorageSettings


def main() -> None:
    servers, prefix, data_dir, raw_format, *of_scores = sys.argv[1:]
    print("started", flush=True)
    with connect(KafkaSettings(bootstrap_servers=servers, topic_prefix=prefix)) as broker:
        storage = StorageSettings(
            data_dir=Path(data_dir),
            flush_s=0.15,
            flush_rows=400,
            raw_format=raw_format,  # pyright: ignore[reportArgumentType]
        )
        collection = SCORES if of_scores else FEED
        Archive(broker, storage, closed_after_s=120, collection=collection).run(threading.Event())


if __name__ == "__main__":
    main()
