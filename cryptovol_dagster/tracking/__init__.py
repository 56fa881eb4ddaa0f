"""MLflow: runs, the registry and the format of a registered model."""
