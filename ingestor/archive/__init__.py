"""Raw storage: every Kafka offset exactly once, by hour of event time; its writer, recovery and reader."""
