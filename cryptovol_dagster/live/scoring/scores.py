"""Rows in, messages out: what is published of each bar, and what was published of it before.

Belongs here: the reason or the probability of a row, its revision, and which model scores which bar. Does not
belong here: Kafka.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import feature_names, features_version
from cryptovol_dagster.core.features.grid import Reason
from cryptovol_dagster.core.features.row_hash import row_hashes
from cryptovol_dagster.core.live.join import JoinedBar, OwnRow
from cryptovol_dagster.core.live.reasons import (
    CROSS_INCOMPLETE,
    NO_MODEL,
    NOT_HEARD,
    OK,
    OTHER_FEATURES,
)
from cryptovol_dagster.core.specs import TimescaleSpec
from cryptovol_dagster.live.scoring.champions import TRIED_ROWS, InUse
from ingestor.envelope import Contribution, ScoreMessage

_REASONS = {int(reason): reason.name.lower() for reason in Reason}


@dataclass(frozen=True)
class _Published:
    """What was published last of a bar: all that another message must differ from."""

    revision: int
    reason: str
    probability: float | None
    row_hash: str | None

    def is_same(self, message: ScoreMessage) -> bool:
        found = message.reason, message.row_hash, message.probability
        return found == (self.reason, self.row_hash, self.probability)


class Scores:
    """Scores bars of one chain with the model that is in use for them.

    A bar keeps its model: a revision after a change of the model is scored by the former one.
    """

    def __init__(self, spec: TimescaleSpec) -> None:
        """Begin without a model, and with nothing published."""
        self._spec = spec
        self._names, self._version = feature_names(spec), features_version(spec)
        self._published: dict[str, dict[int, _Published]] = {}
        #: From which bar end on which model scores, oldest first.
        self._models: list[tuple[int, InUse | None]] = [(0, None)]
        self._newest_ns, self._has_scored = 0, False
        self._recent: deque[NDArray[np.float64]] = deque(maxlen=TRIED_ROWS)

    @property
    def in_use(self) -> InUse | None:
        """The model that scores the next bar."""
        return self._models[-1][1]

    @property
    def newest_ns(self) -> int:
        """End of the newest bar that was scored."""
        return self._newest_ns

    @property
    def products(self) -> tuple[str, ...]:
        """Products of which something was published."""
        return tuple(self._published)

    def recent_rows(self) -> NDArray[np.float64]:
        """Return the newest valid whole rows (n, n_features), on which another model can be tried."""
        rows = list(self._recent)
        return np.array(rows) if rows else np.empty((0, len(self._names)))

    def use(self, model: InUse | None) -> int:
        """Score with another model from the next bar on; return the end of the last bar before it."""
        # Nothing was scored in this run so far: bars that a kill left out have no former model.
        from_ns = self._newest_ns + 1 if self._has_scored else 0
        self._models = [each for each in self._models if each[0] < from_ns] + [(from_ns, model)]
        return self._newest_ns

    def restore(self, messages: Iterable[ScoreMessage]) -> None:
        """Take over what an earlier run published, in the order it did."""
        for message in messages:
            known = self._published.setdefault(message.product_id, {})
            before = known.get(message.bar_end_ns)
            if before is None or before.revision <= message.revision:
                known[message.bar_end_ns] = _Published(
                    message.revision, message.reason, message.probability, message.row_hash
                )
            self._newest_ns = max(self._newest_ns, message.bar_end_ns)

    def of_bar(self, bar: JoinedBar, now_ns: int) -> list[ScoreMessage]:
        """Score the rows of a bar; return what is new, or another than what was published.

        Args:
            bar: joined rows.
            now_ns: wall clock.
        """
        model, n = self._model_at(bar.bar_end_ns), len(bar.rows)
        reasons = [self._reason(row, bar.is_complete, model) for row in bar.rows]
        hashes: Sequence[str | None] = row_hashes(bar.values) if bar.is_complete else [None] * n
        news = [
            k
            for k, row in enumerate(bar.rows)
            if self._may_differ(row.product, bar.bar_end_ns, reasons[k], hashes[k])
        ]
        scored = [k for k in news if reasons[k] == OK]
        probabilities: dict[int, float] = {}
        if scored and model is not None:
            found = model.predict(bar.values[scored], self._names)
            probabilities = dict(zip(scored, found.tolist(), strict=True))
        shares = self._shares(bar, model, probabilities)
        self._recent.extend(bar.values[scored])
        self._newest_ns, self._has_scored = max(self._newest_ns, bar.bar_end_ns), True
        messages = [
            self._message(
                bar.rows[k].product,
                bar.bar_end_ns,
                reasons[k],
                now_ns,
                model=model,
                probability=probabilities.get(k),
                row_hash=hashes[k],
                provisional=bar.rows[k].provisional or not bar.is_complete,
                contributions=shares.get(k, []),
            )
            for k in news
        ]
        return [message for message in map(self._revised, messages) if message is not None]

    def unheard(self, product: str, bar_end_ns: int, now_ns: int, *, provisional: bool) -> list[ScoreMessage]:
        """Return the message that no row came of a bar; none where something was published of it."""
        if bar_end_ns in self._published.get(product, {}):
            return []
        return self._without_row(product, bar_end_ns, NOT_HEARD, now_ns, provisional=provisional)

    def other_features(self, product: str, bar_end_ns: int, now_ns: int) -> list[ScoreMessage]:
        """Return the message that a row is of another version of the features."""
        return self._without_row(product, bar_end_ns, OTHER_FEATURES, now_ns, provisional=False)

    def forget_before(self, product: str, bar_end_ns: int) -> None:
        """Forget what was published of a product's bars that cannot change any more."""
        known = self._published.get(product, {})
        for end_ns in [end_ns for end_ns in known if end_ns < bar_end_ns]:
            del known[end_ns]

    def forget_models_before(self, bar_end_ns: int) -> None:
        """Forget models that score no bar from this one on."""
        while len(self._models) > 1 and self._models[1][0] <= bar_end_ns:
            del self._models[0]

    def _model_at(self, bar_end_ns: int) -> InUse | None:
        return next(model for from_ns, model in reversed(self._models) if from_ns <= bar_end_ns)

    def _reason(self, row: OwnRow, is_complete: bool, model: InUse | None) -> str:
        if not row.valid:
            return _REASONS[row.reason]
        if model is None:
            return NO_MODEL
        if not is_complete and model.model.meta.cross_set:
            return CROSS_INCOMPLETE
        return OK

    def _shares(
        self, bar: JoinedBar, model: InUse | None, probabilities: dict[int, float]
    ) -> dict[int, list[Contribution]]:
        """Return the contributions of the flagged rows of a bar."""
        if model is None or (threshold := model.flagging.threshold) is None:
            return {}
        flagged = [k for k, probability in probabilities.items() if probability >= threshold]
        if not flagged:
            return {}
        return dict(zip(flagged, model.contributions(bar.values[flagged], self._names), strict=True))

    def _may_differ(self, product: str, bar_end_ns: int, reason: str, row_hash: str | None) -> bool:
        """Return whether a row must be scored: equal rows were scored by the same model."""
        known = self._published.get(product, {}).get(bar_end_ns)
        return known is None or (known.reason, known.row_hash) != (reason, row_hash)

    def _without_row(
        self, product: str, bar_end_ns: int, reason: str, now_ns: int, *, provisional: bool
    ) -> list[ScoreMessage]:
        model = self._model_at(bar_end_ns)
        message = self._message(product, bar_end_ns, reason, now_ns, model=model, provisional=provisional)
        revised = self._revised(message)
        return [] if revised is None else [revised]

    def _message(
        self,
        product: str,
        bar_end_ns: int,
        reason: str,
        now_ns: int,
        *,
        model: InUse | None,
        provisional: bool,
        probability: float | None = None,
        row_hash: str | None = None,
        contributions: Sequence[Contribution] = (),
    ) -> ScoreMessage:
        threshold = None if model is None else model.flagging.threshold
        flag = None if probability is None or threshold is None else probability >= threshold
        named: dict[str, Any] = dict.fromkeys(("model", "model_as_of", "model_version", "model_age_s"))
        if model is not None:
            named = {
                "model": model.champion.model,
                "model_as_of": model.champion.as_of,
                "model_version": model.version,
                "model_age_s": model.age_s(bar_end_ns),
            }
        return ScoreMessage(
            chain=self._spec.name,
            product_id=product,
            bar_end_ns=bar_end_ns,
            revision=0,
            published_at_ns=now_ns,
            provisional=provisional,
            probability=probability,
            reason=reason,
            flag=flag,
            threshold=threshold,
            feature_version=self._version,
            row_hash=row_hash,
            contributions=list(contributions),
            **named,
        )

    def _revised(self, message: ScoreMessage) -> ScoreMessage | None:
        """Return a message with its revision, and remember it; None where the same was published."""
        known = self._published.setdefault(message.product_id, {})
        before = known.get(message.bar_end_ns)
        if before is not None:
            if before.is_same(message):
                return None
            message = msgspec.structs.replace(message, revision=before.revision + 1)
        known[message.bar_end_ns] = _Published(
            message.revision, message.reason, message.probability, message.row_hash
        )
        return message
