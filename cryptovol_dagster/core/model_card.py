"""The model card: what the models are for, what they were measured on, and what they cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render_model_card(evaluation: Mapping[str, Any], *, title: str = "cryptovol spike models") -> str:
    """Render the content of ``model_eval.json`` as Markdown.

    Args:
        evaluation: what `Evaluation.to_dict` returned (or what was read from the file).
        title: heading of the card.
    """
    raise NotImplementedError
