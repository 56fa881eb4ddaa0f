"""The record of one decision about the champion, as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec

from cryptovol_dagster.core.promotion.gate import Difference, InterimAnalysis
from cryptovol_dagster.core.specs import DAY_S, NS
from cryptovol_dagster.core.times import hour_window
from ingestor.errors import CryptovolError

SCHEMA_VERSION = 2
PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA = "PROMOTE", "HOLD", "REJECT", "INSUFFICIENT_DATA"
#: A person's verdict, which no rule returns.
ROLLBACK = "ROLLBACK"
VERDICTS = (PROMOTE, HOLD, REJECT, INSUFFICIENT_DATA, ROLLBACK)
#: Kinds of decision: there was no champion; the champion could not be scored any more; a challenger was
#: analyzed; the champion had expired; a person decided; nothing was due.
FIRST, SUCCESSION, GATE, EXPIRY, BY_HAND, NOTHING_DUE = (
    "first",
    "succession",
    "gate",
    "expiry",
    "rollback",
    "nothing_due",
)


class DecisionError(CryptovolError):
    """A stored decision cannot be read; the message is one line."""


@dataclass(frozen=True)
class Champion:
    """A trained model that is champion, or may become champion.

    Attributes:
        model: its kind.
        as_of: the partition as of which it was trained.
        problem_hash: identifies the rows, cut and thresholds it was trained with. With kind and as-of it
            identifies the champion; a model trained again on the same rows is the same champion.
        feature_hash: of the feature set it was trained on.
        mlflow_run_id: its training run.
        unproven: it became champion without winning a comparison.
        registry_version: its version in the model registry; None while it is not registered.
        unseen_from_ns: decision time from which on it has not learned from any row, validation included.

    Examples:
        >>> old = Champion("ewma", "2026-04-04-03:00", "p1", "f1", "run1", unproven=True)
        >>> again = Champion("ewma", "2026-04-04-03:00", "p1", "f1", "run2", unproven=False)
        >>> str(old), old.is_same_model(again)
        ('ewma of 2026-04-04-03:00', True)
    """

    model: str
    as_of: str
    problem_hash: str
    feature_hash: str
    mlflow_run_id: str
    unproven: bool
    registry_version: str | None = None
    unseen_from_ns: int = 0

    def is_same_model(self, other: Champion | None) -> bool:
        """Return whether both are the same trained model."""
        return other is not None and self.identity == other.identity

    @property
    def identity(self) -> tuple[str, str, str]:
        """Kind, as-of and problem: what identifies a trained model."""
        return self.model, self.as_of, self.problem_hash

    def __str__(self) -> str:
        return f"{self.model} of {self.as_of}"


@dataclass(frozen=True)
class Contest:
    """A challenger and the rows on which it is measured against the champion.

    Attributes:
        challenger: the trained model.
        start_ns: the hold-out's first decision time: neither model learned from it, no earlier decision used
            it.
        looked_until_ns: the hold-out's end at the last interim analysis; None before the first.
    """

    challenger: Champion
    start_ns: int
    looked_until_ns: int | None = None

    def length_days(self, end_ns: int) -> float:
        """Return the length of the hold-out up to a time, in days."""
        return max(end_ns - self.start_ns, 0) / NS / DAY_S


@dataclass(frozen=True)
class Challenge:
    """Result of the analysis of a challenger, with both models scored on the same rows.

    Attributes:
        challenger: the analyzed model.
        champion: the champion until then.
        start_ns: the hold-out's first decision time.
        end_ns: its end.
        rows: number of its rows.
        positives: number of spikes among them.
        block_s: length of a block that counts as independent, in seconds.
        average_precision: of the challenger.
        brier: of the challenger.
        champion_average_precision: of the champion.
        champion_brier: of the champion.
        references: average precision of plain models on the same rows.
        difference: challenger minus champion; None where the data do not suffice.
    """

    challenger: Champion
    champion: Champion
    start_ns: int
    end_ns: int
    rows: int
    positives: int
    block_s: float
    average_precision: float | None
    brier: float | None
    champion_average_precision: float | None
    champion_brier: float | None
    references: dict[str, float | None] = field(default_factory=dict)
    difference: Difference | None = None


@dataclass(frozen=True)
class Decision:
    """Decision as of a partition, with the state that later decisions need.

    Fields, here and in the records inside, are the keys of the stored JSON: renaming one breaks stored files.

    Attributes:
        as_of: the partition.
        verdict: one of `VERDICTS`.
        reasons: sentences: what was expected, what was found.
        champion: the champion from now on; None while nothing could be trained.
        kind: kind of decision.
        contest: the challenger under comparison from now on; None where there is none.
        challenge: result of the analysis of a challenger; None where none was analyzed.
        changed: whether the champion is another one than before.
        decided_as_of: the newest partition with a decision, this one included.
        used_until_ns: end of the rows that any decision has used.
        looks: the interim analyses that still count against the error budget.
        barred: identities of models that a person removed; the rule never promotes them again.
        data_hash: of the evaluated rows; empty where nothing was evaluated.
        feature_hash: of their feature set.
        evaluation_hash: of the evaluation.

    Examples:
        >>> champion = Champion("ewma", "2026-04-04-03:00", "p1", "f1", "run1", unproven=True)
        >>> reasons = ("there was no champion yet",)
        >>> first = Decision("2026-04-04-03:00", PROMOTE, reasons, champion, kind=FIRST)
        >>> Decision.from_dict(first.to_dict()) == first
        True
        >>> first.registered_as("1").champion.registry_version
        '1'
    """

    as_of: str
    verdict: str
    reasons: tuple[str, ...]
    champion: Champion | None
    kind: str = NOTHING_DUE
    contest: Contest | None = None
    challenge: Challenge | None = None
    changed: bool = False
    decided_as_of: str = ""
    used_until_ns: int = 0
    looks: tuple[InterimAnalysis, ...] = ()
    barred: tuple[tuple[str, str, str], ...] = ()
    data_hash: str = ""
    feature_hash: str = ""
    evaluation_hash: str = ""

    def registered_as(self, version: str) -> Decision:
        """Return the same decision with the champion's version in the registry."""
        if self.champion is None:
            raise DecisionError(f"decision as of {self.as_of} has no champion to register")
        return replace(self, champion=replace(self.champion, registry_version=version))

    def challenger_registered_as(self, version: str) -> Decision:
        """Return the same decision with the challenger's version in the registry."""
        if self.contest is None:
            raise DecisionError(f"decision as of {self.as_of} has no challenger to register")
        challenger = replace(self.contest.challenger, registry_version=version)
        return replace(self, contest=replace(self.contest, challenger=challenger))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-able form, with the schema version."""
        body = {**asdict(self), "reasons": list(self.reasons), "looks": [asdict(one) for one in self.looks]}
        return {"schema_version": SCHEMA_VERSION, **body, "barred": [list(one) for one in self.barred]}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Decision:
        """Build a decision from the form of `to_dict`, in this schema version or an earlier one.

        Raises:
            DecisionError: it is not a decision of a known schema version.
        """
        try:
            version = body["schema_version"]
            if version == 1:
                return _from_version_1(body)
            if version != SCHEMA_VERSION:
                raise DecisionError(
                    f"decision of schema version {version}; this version reads 1 to {SCHEMA_VERSION}"
                )
            return msgspec.convert(dict(body), cls)
        except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
            raise DecisionError(f"decision cannot be read: {error!r}") from error


def _from_version_1(body: Mapping[str, Any]) -> Decision:
    """Read a decision of the rule before the gate, which compared kinds trained on the same rows.

    Its partitions were hours. It does not contain the rows its models had not seen: the end of the hour is a
    safe bound, and all rows before it count as used. The challenge compared something else and is left out.
    """
    kept = {name: value for name, value in body.items() if name not in ("schema_version", "challenge")}
    if kept["champion"] is not None:
        end_ns = hour_window(kept["champion"]["as_of"])[1]
        kept["champion"] = kept["champion"] | {"unseen_from_ns": end_ns}
    return msgspec.convert(
        kept | {"decided_as_of": kept["as_of"], "used_until_ns": hour_window(kept["as_of"])[1]}, Decision
    )
