"""Reasons why a bar has no probability: those of the features, and those of the live path."""

from __future__ import annotations

from cryptovol_dagster.core.features.grid import Reason

OK = "ok"
CROSS_INCOMPLETE, NOT_HEARD = "cross_incomplete", "not_heard"
NO_MODEL, OTHER_FEATURES = "no_model", "other_features"

#: Every reason for which a bar has no probability, with its meaning in words.
NO_SCORE: dict[str, str] = {
    Reason.WARMING_UP.name.lower(): "too few bars so far for the longest window",
    Reason.STALE.name.lower(): "the last quote is too old",
    Reason.IN_GAP.name.lower(): "messages are missing",
    Reason.NO_QUOTE.name.lower(): "there is no quote",
    Reason.BREAK.name.lower(): "the return of this bar crosses a break",
    CROSS_INCOMPLETE: "rows of the reference set did not come in time; a revision follows if they do",
    NOT_HEARD: "no row came of this bar",
    NO_MODEL: "there is no champion, or its file cannot be used",
    OTHER_FEATURES: "the row is of another version of the features than the model",
}
