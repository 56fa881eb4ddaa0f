"""Pure domain code: arrays and frames in, arrays and frames out; no Dagster, MLflow, Kafka, files or clock."""
