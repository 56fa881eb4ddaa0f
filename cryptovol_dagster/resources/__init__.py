"""Only what stored models name: see `mlflow_model`."""
