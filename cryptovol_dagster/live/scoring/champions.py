"""The champion that scores, and the watch that notices another one.

The alias `champion` of the registry decides, since it is what people move. Where MLflow has no server, or it
does not answer, the newest decision in the lake decides. Another champion is loaded and tried beside the
running one; it is refused if anything about it is wrong, and the running one stays.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cryptovol_dagster.core.features.catalogue import feature_hash, feature_names
from cryptovol_dagster.core.models import Model, load_model
from cryptovol_dagster.core.models.base import ModelError, why_unscorable
from cryptovol_dagster.core.models.contributions import top_contributions
from cryptovol_dagster.core.promotion.decision import Champion
from cryptovol_dagster.core.specs import NS, TimescaleSpec
from cryptovol_dagster.http_client import AttemptError
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.files import Lake
from cryptovol_dagster.lake.operating_points import Flagging, flagging_of
from cryptovol_dagster.tracking.alias import champion_by_alias, has_server
from ingestor.envelope import Contribution
from ingestor.errors import CryptovolError

LOG = logging.getLogger(__name__)

#: Live rows on which another champion is tried before it scores.
TRIED_ROWS = 1_000


class RefusedError(CryptovolError):
    """A model cannot become the one that scores; the message says which, and why."""


@dataclass(frozen=True, eq=False)
class InUse:
    """A model that scores.

    Attributes:
        champion: which one.
        model: fitted.
        version: its version in the registry, else the hash of its file.
        flagging: where it flags, and when an episode opens.
    """

    champion: Champion
    model: Model
    version: str
    flagging: Flagging = field(default_factory=Flagging)

    def age_s(self, bar_end_ns: int) -> float:
        """Return how long before a bar's end its training ended, in seconds."""
        return (bar_end_ns - self.model.meta.train_end_ns) / NS

    def predict(self, values: NDArray[np.float64], names: tuple[str, ...]) -> NDArray[np.float64]:
        """Return one probability a row.

        Args:
            values: whole rows (n, n_features).
            names: of the features.

        Raises:
            ModelError: a column that the model reads contains infinity, or NaN though it is not optional.
        """
        return self.model.predict_proba(self._inputs(values, names))

    def contributions(self, values: NDArray[np.float64], names: tuple[str, ...]) -> list[list[Contribution]]:
        """Return, for each row, the features with the greatest share in its log-odds.

        Args:
            values: whole rows (n, n_features).
            names: of the features.

        Raises:
            ModelError: as `predict`, or this kind of model has no exact shares.
        """
        shares = top_contributions(self.model, self._inputs(values, names))
        return [[Contribution(*share) for share in row] for row in shares]

    def _inputs(self, values: NDArray[np.float64], names: tuple[str, ...]) -> pd.DataFrame:
        frame = pd.DataFrame(values, columns=pd.Index(names), copy=False)
        return frame.reindex(columns=list(self.model.meta.inputs))


def load_champion(lake: Lake, spec: TimescaleSpec, champion: Champion) -> InUse:
    """Load a champion or challenger, and check that it can score rows of this chain's features.

    Raises:
        RefusedError: its file is missing or not a model file, or it was trained for other rows.
    """
    try:
        content = decisions.read_model_file(lake, spec, champion)
        model = load_model(content)
        flagging = flagging_of(lake, spec, champion.as_of, champion.model)
    except (CryptovolError, ValueError, KeyError) as error:
        raise RefusedError(f"{champion}: its file cannot be used: {error}") from error
    meta = model.meta
    if meta.timescale != spec.name:
        raise RefusedError(f"{champion}: it is a model of {meta.timescale}, expected {spec.name}")
    if meta.feature_hash != feature_hash(spec):
        raise RefusedError(
            f"{champion}: it was trained on features {meta.feature_hash}, expected {feature_hash(spec)}"
        )
    if reason := why_unscorable(model, feature_names(spec), spec.reference_set):
        raise RefusedError(f"{champion}: {reason}")
    version = champion.registry_version or f"sha256:{hashlib.sha256(content).hexdigest()[:12]}"
    return InUse(champion, model, version, flagging)


def try_on(candidate: InUse, values: NDArray[np.float64], names: tuple[str, ...]) -> None:
    """Check that a model scores recent live rows.

    Args:
        candidate: the model.
        values: valid whole rows (n, n_features); there may be none yet.
        names: of the features.

    Raises:
        RefusedError: it refuses a row, or a probability is not a number from 0 to 1.
    """
    try:
        found = candidate.predict(values, names)
    except ModelError as error:
        raise RefusedError(f"{candidate.champion}: it cannot score live rows: {error}") from error
    if bad := int((~((found >= 0) & (found <= 1))).sum()):
        raise RefusedError(
            f"{candidate.champion}: {bad} of {len(found)} live rows get no probability from 0 to 1"
        )


@dataclass(frozen=True)
class Found:
    """The champion and the challenger of a moment; None where there is none."""

    champion: Champion | None
    challenger: Champion | None


class ChampionFinder:
    """Finds out which models are champion and challenger, by the registry or by the newest decision."""

    def __init__(self, lake: Lake, spec: TimescaleSpec, tracking_uri: str) -> None:
        """Ask nothing yet.

        Args:
            lake: where decisions are.
            spec: the chain.
            tracking_uri: MLflow; a database file has no server that could be asked.
        """
        self._lake, self._spec, self._tracking_uri = lake, spec, tracking_uri
        self._unanswered = ""

    def find(self) -> Found:
        """Return champion and challenger.

        Raises:
            DecisionError: the newest decision cannot be read.
            RegistryError: the alias points to a version that cryptovol did not register.
        """
        decision = decisions.newest_decision(self._lake, self._spec)
        champion = None if decision is None else decision.champion
        contest = None if decision is None else decision.contest
        if has_server(self._tracking_uri):
            try:
                champion = champion_by_alias(self._tracking_uri, self._spec) or champion
                self._unanswered = ""
            except AttemptError as error:
                if str(error) != self._unanswered:
                    self._unanswered = str(error)
                    LOG.warning("%s; the newest decision in the lake counts meanwhile", error)
        return Found(champion, None if contest is None else contest.challenger)


@dataclass(frozen=True, eq=False)
class Change:
    """Another model is ready to score, or was refused.

    Attributes:
        is_shadow: whether it is the challenger.
        ready: the model; None where there is none any more, or it was refused.
        refused: why; empty where it was not.
    """

    is_shadow: bool
    ready: InUse | None
    refused: str = ""


class ChampionWatch:
    """Looks for another champion or challenger every few seconds, in a thread of its own."""

    def __init__(
        self,
        finder: ChampionFinder,
        lake: Lake,
        spec: TimescaleSpec,
        *,
        every_s: float,
        recent_rows: Callable[[], NDArray[np.float64]],
    ) -> None:
        """Look at nothing yet.

        Args:
            finder: says which models are champion and challenger.
            lake: where their files are.
            spec: the chain.
            every_s: pause between two looks.
            recent_rows: returns up to `TRIED_ROWS` valid whole rows (n, n_features); called in the thread.
        """
        self._finder, self._lake, self._spec, self._every_s = finder, lake, spec, every_s
        self._recent_rows = recent_rows
        self._changes: queue.SimpleQueue[Change] = queue.SimpleQueue()
        #: By role, what was handed on last: an identity, or the reason of a refusal.
        self._last: dict[bool, object] = {False: None, True: None}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion-watch", daemon=True)

    def start(self) -> None:
        """Look once, so that the first rows can be scored, then every few seconds until `stop`."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def changes(self) -> list[Change]:
        """Return the changes since the last call, oldest first."""
        found = []
        while not self._changes.empty():
            found.append(self._changes.get())
        return found

    def look(self) -> None:
        """Look once."""
        try:
            found = self._finder.find()
        except CryptovolError as error:
            self._refuse(False, str(error))
            return
        for is_shadow, champion in ((False, found.champion), (True, found.challenger)):
            self._consider(is_shadow, champion)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()

    def _consider(self, is_shadow: bool, champion: Champion | None) -> None:
        identity = None if champion is None else (*champion.identity, champion.registry_version)
        if identity == self._last[is_shadow]:
            return
        if champion is None:
            if is_shadow:
                self._hand_on(is_shadow, None, None)
            return
        try:
            ready = load_champion(self._lake, self._spec, champion)
            try_on(ready, self._recent_rows(), feature_names(self._spec))
        except RefusedError as error:
            self._refuse(is_shadow, str(error))
            return
        self._hand_on(is_shadow, identity, ready)

    def _hand_on(self, is_shadow: bool, identity: object, ready: InUse | None) -> None:
        self._last[is_shadow] = identity
        self._changes.put(Change(is_shadow, ready))

    def _refuse(self, is_shadow: bool, reason: str) -> None:
        # The same refusal again and again is one event; what was refused may be put right meanwhile.
        if self._last[is_shadow] != reason:
            self._last[is_shadow] = reason
            self._changes.put(Change(is_shadow, None, reason))
