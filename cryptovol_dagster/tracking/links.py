"""Addresses of pages in MLflow's UI; imports nothing, so that callers that only print one start fast."""

from __future__ import annotations


def mlflow_page(ui_url: str, path: str) -> str:
    """Return the address of a page in MLflow's view for model training; its own default is GenAI.

    Args:
        ui_url: where MLflow's server answers.
        path: of the page, e.g. ``experiments/1``.
    """
    return f"{ui_url.rstrip('/')}/#/{path}?workflowType=machine_learning"
