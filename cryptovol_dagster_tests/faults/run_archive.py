"""A process that only archives, to be killed: ``run_archive <servers> <prefix> <data dir> <format>``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ingestor.archive.consumer import Archive
from ingestor.kafka.broker import connect
from ingestor.settings.sections import KafkaSettings, StorageSettings


def main() -> None:
    servers, prefix, data_dir, raw_format = sys.argv[1:]
    print("started", flush=True)
    with connect(KafkaSettings(bootstrap_servers=servers, topic_prefix=prefix)) as broker:
        storage = StorageSettings(
            data_dir=Path(data_dir),
            flush_s=0.15,
            flush_rows=400,
            raw_format=raw_format,  # pyright: ignore[reportArgumentType]
        )
        Archive(broker, storage, closed_after_s=120).run(threading.Event())


if __name__ == "__main__":
    main()
