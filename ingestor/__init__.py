"""The recorder: exchange → Kafka → raw storage, losing nothing. It knows nothing of the pipeline."""
