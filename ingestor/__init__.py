"""The recorder: exchange → Kafka → raw storage, without losses. It does not depend on the pipeline."""
