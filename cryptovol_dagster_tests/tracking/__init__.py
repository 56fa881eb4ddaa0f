"""Tests of models in MLflow."""
