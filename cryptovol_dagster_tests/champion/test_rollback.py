"""An earlier model put back in force by hand, and crashes on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cryptovol_dagster.champion import rollback, scoring
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.promotion.decision import Decision, DecisionError
from cryptovol_dagster.core.times import hour_window
from cryptovol_dagster.lake import decisions
from cryptovol_dagster.lake.latest import Reports
from cryptovol_dagster.tracking.registry import RegistryError
from cryptovol_dagster_tests.champion.world import HOURS, NAME, SPEC, TAGS, Crash, Skill, World


def roll_back(world: World, **how: Any) -> rollback.Rollback:
    reports = Reports(world.settings.storage.reports_dir, world.settings.storage.artifacts_dir)
    asked = {"to": "previous", "reason": "alarms all night"} | how
    return rollback.roll_back_to(world.lake, SPEC, reports, world.registry, **asked)


def test_a_rollback_moves_the_alias_and_the_model_does_not_come_back_by_itself(
    world: World, skill: Skill
) -> None:
    first, second = world.promote(*HOURS[:2])
    aliases = world.aliases()
    dry = roll_back(world, dry_run=True)
    assert (dry.aliases, world.aliases()) == ("", aliases)
    assert not world.lake.exists("seconds/champion", HOURS[1], "rollback.json")

    done = roll_back(world)
    assert first.is_same_model(done.decision.champion)
    assert second.is_same_model(done.taken_out)
    assert done.aliases == "champion is version 1 now, previous is none"
    assert world.aliases() == {"champion": f"ewma {HOURS[0]}"}
    tags = world.client.get_model_version(NAME, "2").tags
    assert (tags["cryptovol.verdict"], tags["cryptovol.decision"]) == ("ROLLBACK", "rollback")
    latest = json.loads((world.settings.storage.reports_dir / "decision.json").read_text())
    assert Decision.from_dict(latest) == done.decision

    # Deciding the hour again finds the same challenger better again, and the rollback stands all the same.
    again = world.settle(HOURS[1])
    assert second.is_same_model(again.decision.champion)
    assert first.is_same_model(again.standing.champion)
    assert again.aliases == "champion is version 1 already"
    # The next hour goes on from it: its challenger has no row yet that came after the rollback.
    following = world.settle(HOURS[2]).decision
    assert first.is_same_model(following.champion)
    assert following.contest is not None
    assert following.contest.start_ns == hour_window(HOURS[3])[1]
    assert following.challenge is None
    assert following.barred == (second.identity,)


def test_a_rollback_to_a_version_and_what_cannot_be_done(world: World, skill: Skill) -> None:
    with pytest.raises(DecisionError, match="seconds has no champion to roll back"):
        roll_back(world)
    world.settle(HOURS[0])
    with pytest.raises(RegistryError, match=f"^{NAME} has no version previous$"):
        roll_back(world)
    with pytest.raises(RegistryError, match=f"^{NAME} has no version 9$"):
        roll_back(world, to="9")
    with pytest.raises(DecisionError, match=rf"^ewma of {HOURS[0]} is champion already$"):
        roll_back(world, to="1")
    world.client.set_model_version_tag(NAME, "1", "cryptovol.feature_hash", "another")
    world.settle(HOURS[1])
    with pytest.raises(DecisionError, match="was trained on feature set another, expected"):
        roll_back(world)


def test_a_model_whose_copy_is_gone_comes_from_the_registry(world: World, skill: Skill) -> None:
    first, _ = world.promote(*HOURS[:2])
    content = decisions.read_champion_file(world.lake, SPEC, first)
    for path in world.lake.path("seconds/champion", HOURS[0]).parent.glob("part.ewma.*"):
        path.unlink()
    roll_back(world, to="1")
    assert decisions.read_champion_file(world.lake, SPEC, first) == content


def test_a_rollback_broken_off_anywhere_is_finished_by_the_next_run(world: World, skill: Skill) -> None:
    steps = [
        *TAGS,
        "rollback.json of seconds/champion",
        "delete_registered_model_alias",
        "set_registered_model_alias",
    ]
    for at in (0, *range(3, len(steps))):
        world.forget()
        skill.challenger = 3.0
        first, second = world.promote(*HOURS[:2])
        world.steps.crash_before, world.steps.taken[:] = at, []
        with pytest.raises(Crash):
            roll_back(world)
        assert world.steps.taken == steps[:at]
        assert world.aliases()["champion"] == f"{second.model} {HOURS[1]}"
        decided = at > steps.index("rollback.json of seconds/champion")
        skill.challenger = skill.champion
        standing = world.settle(HOURS[2]).standing.champion
        assert (first if decided else second).is_same_model(standing)
        assert standing is not None
        assert world.aliases()["champion"] == f"{standing.model} {standing.as_of}"


def test_a_rollback_in_the_middle_of_a_decision_is_not_lost(
    world: World, skill: Skill, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = world.promote(*HOURS[:2])
    score = skill.score_span

    def meanwhile(*args: Any) -> ScoredRows:
        roll_back(world)
        return score(*args)

    monkeypatch.setattr(scoring, "score_span", meanwhile)
    with pytest.raises(DecisionError, match=rf"found ewma of {HOURS[0]}: decide again$"):
        world.settle(HOURS[2])
    assert not world.lake.exists("seconds/champion", HOURS[2], "json")
    assert first.is_same_model(world.settle(HOURS[2]).decision.champion)
