"""Pure domain code: arrays and frames in and out; no Dagster, MLflow, Kafka, files or clock."""
