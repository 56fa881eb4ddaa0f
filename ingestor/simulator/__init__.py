"""A server that speaks the exchange's protocol on loopback: recordings or a synthetic market, with faults.

What belongs here: where frames come from (`market`, `recorded`), the faults (`faults`), the market's clock
and one connection's numbering (`playback`), the socket (`server`). Everything but the socket is pure and
tells the same story whatever the speed. What does not: recording formats (`ingestor.recordings`) and the
client's side (`ingestor.feed`).
"""
