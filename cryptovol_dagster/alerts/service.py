"""Alerts of a process: facts go in, rules decide, the outbox keeps, threads send.

No call of the live path waits for a disk or a receiver. An alert is stored before it is sent, so after a
crash it is sent by the next process that uses the outbox.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from cryptovol_dagster.alerts import texts
from cryptovol_dagster.alerts.errors import AlertRuleError, OutboxError
from cryptovol_dagster.alerts.outbox import Alert, Outbox
from cryptovol_dagster.alerts.sending import Patience, Sender
from cryptovol_dagster.alerts.targets import require_usable, targets_of
from cryptovol_dagster.alerts.texts import Text
from cryptovol_dagster.chains import UnknownChain, spec_of, timescale_specs
from cryptovol_dagster.core.live.alerting import Alerting, Due, Fact, Rule, champion_age, feed_silence
from ingestor.envelope import LiveEvent, ScoreMessage, closed_partition
from ingestor.settings import Settings

LOG = logging.getLogger(__name__)
#: Folder of the outbox, below the data folder.
FOLDER = "alerts"
#: Pause before an alert that could not be stored is stored again.
_STORE_AGAIN_S = 2.0
#: Alerts about faults; the others are warnings in the log.
_FAULTS = ("feed_silent", "champion_old", "model_refused", "run_failed")


def rules_of(settings: Settings) -> tuple[Rule, ...]:
    """Return the rules of a configuration.

    Raises:
        AlertRuleError: one names a chain that does not exist.
    """
    for rule in settings.alerts.rules:
        if rule.chain is not None:
            try:
                spec_of(settings, rule.chain)
            except UnknownChain as error:
                raise AlertRuleError(f"alerts.rules: rule '{rule.name}': {error}") from error
    return tuple(
        Rule(rule.name, rule.when, rule.products, rule.chain, rule.at_least, rule.cool_down_s)
        for rule in settings.alerts.rules
    )


def outbox_of(settings: Settings) -> Outbox:
    """Return the outbox of a configuration."""
    return Outbox(settings.storage.data_dir / FOLDER)


class AlertService:
    """Raises alerts and sends them, for as long as the block.

    Every method but `start`, `close` and `report_failed_run` returns at once: each score may be observed.
    A fact that is observed again, after a restart, raises no second alert.

    Examples:
        with AlertService(settings) as alerts:
            alerts.observe(score)       # first the scores of a bar, then its events
            alerts.observe(event)
            alerts.tick(time.time_ns(), feed_heard_at_ns, {"seconds": trained_until_ns})
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], int] = time.time_ns) -> None:
        """Open nothing yet.

        Args:
            settings: the whole configuration.
            clock: wall clock, in nanoseconds.

        Raises:
            AlertRuleError: a rule names a chain that does not exist.
        """
        self._settings, self._clock = settings, clock
        self._rules = rules_of(settings)
        self._targets = targets_of(settings)
        self._wanted = {rule.name: rule.targets or tuple(self._targets) for rule in settings.alerts.rules}
        self._observes_scores = any(rule.kind == "probability" for rule in self._rules)
        self.outbox = outbox_of(settings)
        self._alerting = Alerting(self._rules)
        self._newest: dict[tuple[str, str], ScoreMessage] = {}
        self._to_store: queue.Queue[Alert | None] = queue.Queue()
        self._storing = threading.Thread(target=self._store_all, name="alerts-store", daemon=True)
        self._senders: list[Sender] = []
        self._starting = threading.Lock()

    def __enter__(self) -> AlertService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ui_url(self) -> str:
        """Where people open the Dagster UI; used in links."""
        return self._settings.dagster.ui_url

    @cached_property
    def _retrain_every_s(self) -> dict[str, float]:
        """Time between two trainings of each chain, in seconds."""
        specs = timescale_specs(self._settings)
        return {name: float(spec.retrain_every * spec.partition_s) for name, spec in specs.items()}

    def start(self) -> None:
        """Check the targets, restore cool-downs, and send what an earlier process did not.

        Raises:
            AlertTargetError: a target cannot be used as it is configured.
        """
        require_usable(self._targets)
        try:
            self._alerting = Alerting(self._rules, self.outbox.last_ns())
        except OutboxError as error:
            LOG.error("cool-downs of alerts are not restored: %s", error)
        _ = self._meanings, self._retrain_every_s  # here, and not within the first alert
        self._storing.start()
        self._start_sending()

    def close(self, timeout_s: float = 5.0) -> None:
        """Store what was raised, let attempts that were begun end, and stop.

        What is unsent then stays in the outbox, and the next process sends it.

        Args:
            timeout_s: how long attempts may take.
        """
        if self._storing.is_alive():
            self._to_store.put(None)
            self._storing.join(timeout_s)
        for sender in self._senders:
            sender.stop()
        deadline = time.monotonic() + timeout_s
        for sender in self._senders:
            sender.join(max(0.0, deadline - time.monotonic()))

    def observe(self, message: ScoreMessage | LiveEvent) -> None:
        """Raise the alerts of a score or an event of the live path."""
        if isinstance(message, ScoreMessage):
            self._observe_score(message)
        else:
            self._observe_event(message)

    def _observe_score(self, score: ScoreMessage) -> None:
        if score.probability is None or closed_partition(score) is not None:
            return
        # The text of an episode shows it.
        self._newest[score.chain, score.product_id] = score
        if not self._observes_scores:
            return
        subject = f"{score.chain}/{score.product_id}"
        fact = Fact(
            *("probability", subject, str(score.bar_end_ns), score.bar_end_ns),
            *(score.chain, score.product_id, score.probability),
        )
        self._raise(fact, lambda: texts.of_score(score, self._meaning_in(score.chain)))

    def _observe_event(self, event: LiveEvent) -> None:
        chain, product = event.chain, event.product_id
        if event.kind == "model_refused":
            fact = Fact(event.kind, chain, str(event.at_ns), event.at_ns, chain)
            self._raise(fact, lambda: texts.of_refusal(event))
        elif event.kind in ("episode_opened", "episode_closed") and product is not None:
            at_ns = event.at_ns if event.bar_end_ns is None else event.bar_end_ns
            # An episode's id is the same in a run that publishes it again.
            key = str(at_ns) if event.episode is None else event.episode.rpartition("/")[2]
            fact = Fact(event.kind, f"{chain}/{product}", key, at_ns, chain, product)
            score = self._newest.get((chain, product))
            self._raise(fact, lambda: texts.of_episode(event, score, self._meaning_in(chain)))

    def tick(
        self, now_ns: int, feed_heard_at_ns: int | None, trained_until_ns: Mapping[str, int | None]
    ) -> None:
        """Raise the alerts of time that passed: a silent feed, an old champion. Once a second is enough.

        Args:
            now_ns: wall clock.
            feed_heard_at_ns: when the last message of the feed arrived; None before the first.
            trained_until_ns: end of training of each chain's champion; None where there is no champion.
        """
        if feed_heard_at_ns is not None:
            fact = feed_silence(now_ns, feed_heard_at_ns, self._settings.alerts.feed_silent_after_s)
            if fact is not None:
                self._raise(fact, lambda: texts.of_silence(now_ns, feed_heard_at_ns))
        for chain, until_ns in trained_until_ns.items():
            if until_ns is None:
                continue
            every_s = self._retrain_every_s[chain]
            fact = champion_age(now_ns, chain, until_ns, every_s)
            if fact is not None:
                text = (now_ns, chain, until_ns, every_s)
                self._raise(fact, lambda text=text: texts.of_old_champion(*text))

    def report_failed_run(self, failure: Mapping[str, Any]) -> None:
        """Raise the alert of a failed run; when this returns, it is stored. Needs no `start`.

        Args:
            failure: as `defs.automation.alerts.describe_failure` returns it.

        Raises:
            AlertTargetError: a target cannot be used as it is configured; the alert is stored.
            OutboxError: the alert cannot be stored.
        """
        run, text = failure["run_id"], texts.of_failed_run(failure)
        _log("run_failed", text)
        fact = Fact("run_failed", run, run, self._clock())
        for due in Alerting(self._rules, self.outbox.last_ns()).due(fact):
            self.outbox.record(self._alert(due, text), self._wanted[due.rule])
        with self._starting:
            if not self._senders:
                require_usable(self._targets)
                self._start_sending()
        self._wake()

    def wait_until_settled(self, timeout_s: float) -> bool:
        """Wait until no alert is pending, and return whether that came within the time."""
        deadline = time.monotonic() + timeout_s
        while self._to_store.unfinished_tasks or any(self.outbox.pending(name) for name in self._targets):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _raise(self, fact: Fact, text: Callable[[], Text]) -> None:
        for due in self._alerting.due(fact):
            self._to_store.put(self._alert(due, text()))

    def _alert(self, due: Due, text: Text) -> Alert:
        fact = due.fact
        return Alert(
            *(due.id, due.rule, fact.kind, fact.subject, fact.at_ns, self._clock()),
            *(text.title, text.body, text.detail),
        )

    def _store_all(self) -> None:
        while (alert := self._to_store.get()) is not None:
            self._store(alert)
            self._to_store.task_done()

    def _store(self, alert: Alert) -> None:
        is_first = True
        while True:
            try:
                is_new = self.outbox.record(alert, self._wanted[alert.rule])
            except OutboxError as error:
                if is_first:
                    LOG.error("alert is not stored yet: %s: %s", alert.title, error)
                is_first = False
                time.sleep(_STORE_AGAIN_S)
                continue
            if is_new:
                _log(alert.kind, alert)
                self._wake()
            return

    def _start_sending(self) -> None:
        patience = Patience.of(self._settings)
        self._senders = [
            Sender(target, self.outbox, patience, self._clock) for target in self._targets.values()
        ]
        for sender in self._senders:
            sender.start()

    def _wake(self) -> None:
        for sender in self._senders:
            sender.wake()

    @cached_property
    def _meanings(self) -> dict[str, dict[str, str]]:
        """Meaning of each feature in words, by chain."""
        # Imported here: Dagster's processes import this module, and show no features.
        from cryptovol_dagster.core.features.catalogue import feature_list

        return {
            name: {
                one.name: f"{one.name}, {one.family} over {one.window_bars} bars"
                for one in feature_list(spec)
            }
            for name, spec in timescale_specs(self._settings).items()
        }

    def _meaning_in(self, chain: str) -> Callable[[str], str]:
        known = self._meanings.get(chain, {})
        return lambda name: known.get(name, name)


def _log(kind: str, text: Text | Alert) -> None:
    level = logging.ERROR if kind in _FAULTS else logging.WARNING
    LOG.log(level, "alert: %s; %s", text.title, "; ".join(text.body.splitlines()))
