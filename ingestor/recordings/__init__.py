"""Readers of recorded feeds: every format anyone has recorded the exchange in, recognised by content.

What belongs here: a file → ticks as arrays (`iter_recording`, `read_recording`) or a file → the exchange's
frames as they were received (`iter_frames`), with honest counters. What does not: judging ticks (late,
crossed, NaN: `core.market.cleaning`) and talking to the exchange or to Kafka (`ingestor.feed`).
"""

from ingestor.recordings.arrays import Recording, RecordingCounts, TickArrays
from ingestor.recordings.frames import RecordedFrame, iter_frames
from ingestor.recordings.lines import RecordingError
from ingestor.recordings.reader import RecordingReader, iter_recording, read_recording

__all__ = [
    "RecordedFrame",
    "Recording",
    "RecordingCounts",
    "RecordingError",
    "RecordingReader",
    "TickArrays",
    "iter_frames",
    "iter_recording",
    "read_recording",
]
