"""The evaluation as a whole: what it holds, when it doubts itself, and that a leak would show."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from msgspec import structs
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from cryptovol_dagster.core.cards.model_card import CardContext, render_model_card
from cryptovol_dagster.core.evaluation.bench import Bench, periods
from cryptovol_dagster.core.evaluation.episode_choice import grid
from cryptovol_dagster.core.evaluation.evaluate import Evaluation, evaluate, summary_rows
from cryptovol_dagster.core.evaluation.report import (
    SCHEMA_VERSION,
    EvaluationError,
    check_report,
    encode,
    json_schema,
    read_episode_rule,
    read_report,
)
from cryptovol_dagster.core.learning.dataset import Problem, SingleClassError
from cryptovol_dagster.core.learning.splits import TimeRange
from cryptovol_dagster.core.metrics.episodes import (
    Episode,
    EpisodeRule,
    EpisodeState,
    ScoredBars,
    count_episodes,
)
from cryptovol_dagster.core.metrics.events import Market
from cryptovol_dagster.core.metrics.ranking import best_f1_threshold
from cryptovol_dagster.core.metrics.scored_rows import ScoredRows
from cryptovol_dagster.core.models import MODELS, Model, ModelError, train_model
from cryptovol_dagster.core.models.kinds import BASELINES
from cryptovol_dagster.core.pictures.evaluation import (
    draw_evaluation,
    most_violent_stretch,
    plot_episode,
    plot_importances,
    plot_pr_curves,
    plot_sigma_distribution,
)
from cryptovol_dagster.core.promotion.decision import Champion, Decision
from cryptovol_dagster.core.promotion.measured import Measured
from cryptovol_dagster.core.promotion.rule import THE_CHALLENGER, THE_CHAMPION, decide
from cryptovol_dagster.core.specs import NS, GateSpec
from cryptovol_dagster.core.times import iso_utc
from cryptovol_dagster_tests.core.clustered_market import MODEL_SPEC, SPEC, make_bars, make_problem
from cryptovol_dagster_tests.core.promotion.given_rows import GivenRows
from cryptovol_dagster_tests.places import DOCS

PNG = b"\x89PNG\r\n\x1a\n"
N_BARS, SEED = 50_000, 5


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(N_BARS, seed=SEED)


@pytest.fixture(scope="module")
def models(problem: Problem) -> dict[str, Model]:
    return {name: train_model(name, problem, SPEC, MODEL_SPEC, feature_hash="f00d") for name in MODELS}


def run(problem: Problem, models: dict[str, Model]) -> Evaluation:
    return evaluate(problem, models, SPEC, MODEL_SPEC, data_hash="da7a", feature_hash="f00d")


@pytest.fixture(scope="module")
def evaluation(problem: Problem, models: dict[str, Model]) -> Evaluation:
    return run(problem, models)


@pytest.fixture(scope="module")
def short() -> tuple[Problem, dict[str, Model]]:
    """Too little for an interval."""
    problem = make_problem(9_000, seed=2)
    names = ("baseline_zscore", "har_logit")
    return problem, {
        name: train_model(name, problem, SPEC, MODEL_SPEC, feature_hash="f00d") for name in names
    }


def with_test_labels(problem: Problem, value: bool) -> Problem:
    return replace(problem, y=np.where(problem.split.test.mask(problem.dataset.t_ns), value, problem.y))


def test_enough_data_gives_intervals_around_every_number(evaluation: Evaluation) -> None:
    report = evaluation.to_dict()
    assert evaluation.verdict == "ok"
    assert evaluation.reasons == ()
    assert report["schema_version"] == SCHEMA_VERSION == 3
    assert set(report["models"]) == set(MODELS)
    for result in report["models"].values():
        bounds = result["average_precision_interval"]
        assert bounds["low"] < result["average_precision"] < bounds["high"]
        assert result["lift"] == pytest.approx(result["average_precision"] / result["base_rate"])
    assert report["counts"]["test"]["positive_blocks"] >= 10
    assert report["data"] == report["data"] | {"hash": "da7a", "feature_hash": "f00d"}


def test_the_report_is_json_without_nan_and_survives_the_way_back(evaluation: Evaluation) -> None:
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert json.loads(text) == evaluation.to_dict()


def test_the_same_input_gives_the_same_report(
    evaluation: Evaluation, problem: Problem, models: dict[str, Model]
) -> None:
    assert run(problem, models).to_dict() == evaluation.to_dict()


def test_the_report_has_the_fields_of_its_schema(
    evaluation: Evaluation, short: tuple[Problem, dict[str, Model]]
) -> None:
    few = run(*short)
    none = run(with_test_labels(short[0], False), short[1])
    for report in (evaluation.to_dict() | {"as_of": "2026-04-04-06:00"}, few.to_dict(), none.to_dict()):
        record = check_report(report)
        assert read_report(json.dumps(report).encode()) == record
        assert json.loads(encode(record)) == report
    published = DOCS / "reference/model_eval.schema.json"
    assert json.loads(published.read_text()) == json_schema(), (
        "python -m cryptovol_dagster.core.evaluation.report > docs/reference/model_eval.schema.json"
    )


def test_a_report_of_another_form_or_version_is_refused_by_name(evaluation: Evaluation) -> None:
    report = evaluation.to_dict()
    with pytest.raises(EvaluationError, match=r"unknown field `speed`"):
        check_report(report | {"speed": 1})
    with pytest.raises(EvaluationError, match=r"Expected `str`, got `null` - at `\$.verdict`"):
        check_report(report | {"verdict": None})
    older = {name: value for name, value in report.items() if name != "sufficiency"} | {"schema_version": 1}
    says = "evaluation of schema version 1; this version reads 2 and 3: evaluate again"
    with pytest.raises(EvaluationError, match=says):
        read_report(json.dumps(older).encode())
    with pytest.raises(EvaluationError, match=says):
        check_report(older)
    for content, what in ((b"{", "not JSON: "), (b"[]", "not a JSON object")):
        with pytest.raises(EvaluationError, match=what):
            read_report(content)


def test_numbers_can_be_recomputed_from_the_predictions(evaluation: Evaluation, problem: Problem) -> None:
    rows, report = evaluation.predictions, evaluation.to_dict()
    assert len(rows) == report["counts"]["test"]["rows"]
    tau = rows["product"].map(problem.thresholds)
    assert ((rows["sigma"] >= tau) == rows["y"]).all()
    onset = rows["trailing_sigma"] < tau
    for name, result in report["models"].items():
        assert result["average_precision"] == pytest.approx(average_precision_score(rows["y"], rows[name]))
        expected = average_precision_score(rows["y"][onset], rows[name][onset])
        assert result["onset"]["average_precision"] == pytest.approx(expected)
        assert result["onset"]["rows"] == onset.sum()
        bounds = result["onset"]["average_precision_interval"]
        assert bounds["low"] < result["onset"]["average_precision"] < bounds["high"]
        days = rows.groupby(rows["bar_start"].dt.strftime("%Y-%m-%d"))
        assert [one["period"] for one in result["by_period"]] == sorted(days.groups)
        for one, (_, own) in zip(result["by_period"], days, strict=True):
            assert (one["rows"], one["base_rate"]) == (len(own), pytest.approx(own["y"].mean()))
            assert one["average_precision"] == pytest.approx(average_precision_score(own["y"], own[name]))
        split = report["split"]["test"]
        assert result["measured_on"] == {
            "start": split["start"],
            "end": split["end"],
            "products": ["BTC-USD", "ETH-USD"],
            "rows": len(rows),
        }
        for product, own in rows.groupby("product"):
            expected = average_precision_score(own["y"], own[name])
            assert result["by_product"][product]["average_precision"] == pytest.approx(expected)


def test_operating_points_are_chosen_on_validation_and_measured_on_test(
    evaluation: Evaluation, problem: Problem, models: dict[str, Model]
) -> None:
    validation, y_validation = problem.part(problem.split.validation)
    rows = evaluation.predictions
    for name, model in models.items():
        point = evaluation.to_dict()["models"][name]["operating_points"]["max_f1"]
        assert point["threshold"] == best_f1_threshold(y_validation, model.predict_proba(validation.features))
        flagged = rows[name] >= point["threshold"]
        precision, recall, f1, support = precision_recall_fscore_support(rows["y"], flagged)
        for k, label in enumerate(("calm", "spike")):
            expected = {"precision": precision[k], "recall": recall[k], "f1": f1[k], "support": support[k]}
            assert point["classification_report"][label] == pytest.approx(expected)
        assert (
            list(point["confusion_matrix"].values()) == confusion_matrix(rows["y"], flagged).ravel().tolist()
        )
        assert (
            0 <= point["events_found"] <= point["events"] == evaluation.to_dict()["counts"]["test"]["events"]
        )


def test_episode_rules_are_chosen_on_validation_and_measured_on_test(
    evaluation: Evaluation, problem: Problem, models: dict[str, Model]
) -> None:
    """Each rule of the grid is stepped bar by bar here; counts are those of the chosen one."""
    bench = Bench.of(problem, SPEC)
    rows = {"validation": bench.validation, "test": bench.test}
    markets = {"validation": bench.on_validation, "test": bench.on_test}
    for name, result in evaluation.report.models.items():
        chosen = result.episode_rule
        assert chosen is not None
        for part, counts in (("validation", chosen.validation), ("test", chosen.test)):
            market = markets[part]
            episodes = stepped(chosen.rule, market, models[name].predict_proba(rows[part].features))
            assert count_episodes(episodes, market) == counts
        points = result.operating_points
        assert points.max_f1 is not None
        allowed = {points.max_f1.threshold, points.alert_budget and points.alert_budget.threshold}
        assert chosen.rule.enter in allowed
        assert chosen.chosen_on == points.max_f1.chosen_on
        assert chosen.within_budget == (
            chosen.validation.false_episodes_per_hour <= MODEL_SPEC.alert_budget_per_hour
        )
        probability = models[name].predict_proba(bench.validation.features)
        bars = ScoredBars(bench.validation.product, bench.validation.t_ns, probability, NS)
        for rule in grid(filter(None, allowed), 60):
            found = count_episodes(bars.episodes(rule), bench.on_validation)
            if found.f1 and found.false_episodes_per_hour <= MODEL_SPEC.alert_budget_per_hour:
                assert chosen.within_budget
                assert found.f1 <= (chosen.validation.f1 or 0)


def stepped(rule: EpisodeRule, market: Market, probability: np.ndarray) -> list[Episode]:
    """Step through each product's rows."""
    found = []
    for product in np.unique(market.product):
        state = EpisodeState(bar_ns=NS)
        own: dict[int, Episode] = {}
        for k in np.flatnonzero(market.product == product):
            state, changes = state.step(rule, int(market.t_ns[k]), float(probability[k]))
            for one in changes:
                closed_ns = one.bar_end_ns if one.kind == "closed" else None
                own[one.opened_ns] = Episode(product, one.opened_ns, closed_ns, one.outcome, one.greatest)
        found += own.values()
    return found


def test_episode_rules_do_not_depend_on_test_rows(
    evaluation: Evaluation, problem: Problem, models: dict[str, Model]
) -> None:
    """Turned round in time, the test's labels change its counts, and no rule."""
    in_test = problem.split.test.mask(problem.dataset.t_ns)
    y = problem.y.copy()
    y[in_test] = y[in_test][::-1]
    for name, result in run(replace(problem, y=y), models).report.models.items():
        expected = evaluation.report.models[name].episode_rule
        assert result.episode_rule is not None
        assert expected is not None
        assert result.episode_rule.test != expected.test
        assert structs.replace(result.episode_rule, test=expected.test) == expected


def test_a_report_without_episode_rules_is_read(evaluation: Evaluation) -> None:
    """Files of before there were rules stay valid; the card leaves the section out."""
    report = evaluation.to_dict() | {"schema_version": 2}
    for result in report["models"].values():
        del result["episode_rule"]
    read = read_report(json.dumps(report).encode())
    assert (read.schema_version, read.timescale) == (SCHEMA_VERSION, "seconds")
    assert {result.episode_rule for result in read.models.values()} == {None}
    assert read_episode_rule(report, "ewma") is None
    assert "## Episodes" not in render_model_card(read)
    with pytest.raises(EvaluationError, match=r"Expected `str`, got `null` - at `\$.verdict`"):
        check_report(report | {"verdict": None})
    with pytest.raises(EvaluationError, match=r"Expected `object`, got `array` - at `\$.models`"):
        check_report(report | {"models": []})


def test_an_impossible_episode_rule_is_refused_by_name(evaluation: Evaluation) -> None:
    report = evaluation.to_dict()
    report["models"]["ewma"]["episode_rule"]["rule"]["k"] = 0
    with pytest.raises(EvaluationError, match=r"expected 1 ≤ k ≤ n ≤ 60, found k 0"):
        read_report(json.dumps(report).encode())
    with pytest.raises(EvaluationError, match=r"episode rule of model ewma of another form: .* found k 0"):
        read_episode_rule(report, "ewma")
    assert read_episode_rule(report, "logreg") == evaluation.report.models["logreg"].episode_rule.rule


def test_every_model_is_compared_with_every_baseline_and_the_learned_ones_with_one_another(
    evaluation: Evaluation,
) -> None:
    report = evaluation.to_dict()
    pairs = [(entry["model"], entry["baseline"]) for entry in report["comparisons"]]
    baselines = [name for name in MODELS if name in BASELINES]
    assert len(pairs) == len(set(pairs)) == (len(MODELS) - 1) * len(baselines) + 1
    assert ("xgboost", "logreg") in pairs
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in combinations(MODELS, 2)}
    for entry in report["comparisons"]:
        ours, theirs = (report["models"][entry[key]]["average_precision"] for key in ("model", "baseline"))
        assert entry["ap_difference"] == pytest.approx(ours - theirs)
        width = entry["interval"]["high"] - entry["interval"]["low"]
        own = report["models"][entry["model"]]["average_precision_interval"]
        # From close to close persistence and the z-score are one and the same.
        twins = {entry["model"], entry["baseline"]} == {"persistence", "baseline_zscore"}
        assert (width == 0) is twins
        assert twins or width < own["high"] - own["low"]
        onset = (report["models"][entry[key]]["onset"]["average_precision"] for key in ("model", "baseline"))
        assert entry["onset_difference"] == pytest.approx(next(onset) - next(onset))
        assert (entry["onset_interval"]["low"] == entry["onset_interval"]["high"]) is twins


def test_the_future_given_as_a_feature_stands_out(problem: Problem) -> None:
    """The numbers can tell a leak: a column made of the label's own span ranks perfectly."""
    dataset = problem.dataset
    tau = pd.Series(dataset.product).map(problem.thresholds).to_numpy()
    leak = dataset.features.assign(ln_rv_60=np.log(dataset.sigma / tau))
    leaking = replace(problem, dataset=replace(dataset, features=leak))
    onset = {}
    for name, posed in (("leaking", leaking), ("honest", problem)):
        model = train_model("baseline_zscore", posed, SPEC, MODEL_SPEC, feature_hash="f00d")
        result = run(posed, {"baseline_zscore": model}).to_dict()["models"]["baseline_zscore"]
        onset[name] = result["onset"]["average_precision"]
    assert onset["leaking"] == 1.0
    assert onset["honest"] < 0.5


def test_labels_without_order_are_worth_the_base_rate(problem: Problem) -> None:
    shuffled = replace(problem, y=np.random.default_rng(3).permutation(problem.y))
    model = train_model("logreg", shuffled, SPEC, MODEL_SPEC, feature_hash="f00d")
    result = run(shuffled, {"logreg": model}).to_dict()["models"]["logreg"]
    assert result["lift"] == pytest.approx(1, abs=0.1)
    assert result["roc_auc"] == pytest.approx(0.5, abs=0.03)


def test_too_few_blocks_leave_numbers_without_intervals(short: tuple[Problem, dict[str, Model]]) -> None:
    evaluation = run(*short)
    report = evaluation.to_dict()
    assert evaluation.verdict == "insufficient_data"
    assert any("independent blocks of 30 min" in reason for reason in evaluation.reasons)
    for result in report["models"].values():
        assert 0 < result["average_precision"] < 1
        assert result["average_precision_interval"] is None
    assert all(entry["interval"] is None for entry in report["comparisons"])
    json.dumps(report, allow_nan=False)


STANDING = Decision(
    as_of="2026-04-04-05:00",
    verdict="HOLD",
    reasons=(),
    champion=Champion("baseline_zscore", "2026-04-04-05:00", "q", "f00d", "old", True, "7"),
)
#: Every hold-out is long enough, and no champion expires.
GATE = GateSpec(first_look_s=1, champion_max_age_s=float("inf"))


def hold_out(evaluation: Evaluation) -> GivenRows:
    """The test rows as the hold-out of a challenger, which is the richest model of all."""
    rows, richest = evaluation.predictions, evaluation.model_names[-1]
    scores = {THE_CHAMPION: np.asarray(rows["baseline_zscore"]), THE_CHALLENGER: np.asarray(rows[richest])}
    t_ns = np.asarray(pd.DatetimeIndex(rows["bar_start"]).as_unit("ns").asi8)
    held_out = ScoredRows(t_ns, SPEC.bar_ns, np.asarray(rows["y"], dtype=bool), scores)
    return GivenRows(held_out, ranks={richest: 0.5})


def decided(measured: Measured, before: Decision | None, rows: GivenRows) -> Decision:
    """Decide as the chain does."""
    return decide(measured, before, rows, horizon_s=SPEC.horizon_bars, gate=GATE)


@pytest.mark.parametrize(("value", "words"), [(False, "no positives"), (True, "only positives")])
def test_a_single_class_in_the_test_is_a_verdict(
    value: bool, words: str, short: tuple[Problem, dict[str, Model]]
) -> None:
    problem, models = short
    evaluation = run(with_test_labels(problem, value), models)
    assert evaluation.verdict == "insufficient_data"
    assert words in evaluation.reasons[0]
    for result in evaluation.to_dict()["models"].values():
        assert result["average_precision"] is None
        assert result["roc_auc"] is None
        assert result["brier"] is not None
    json.dumps(evaluation.to_dict(), allow_nan=False)
    measured = Measured.from_report(
        structs.replace(evaluation.report, as_of="2026-04-04-06:00"),
        mlflow_run_ids=dict.fromkeys(models, "run"),
        problem_hash="p",
        evaluation_hash="e",
        test=problem.split.test,
    )
    decision = decided(measured, STANDING, hold_out(evaluation))
    assert (decision.verdict, decision.champion, decision.changed) == (
        "INSUFFICIENT_DATA",
        STANDING.champion,
        False,
    )
    assert all(picture.startswith(PNG) for picture in pictures(evaluation))
    assert "insufficient_data" in render_model_card(evaluation.report)


def test_a_product_without_test_rows_is_named_and_the_other_is_measured(
    short: tuple[Problem, dict[str, Model]],
) -> None:
    problem, models = short
    dataset = problem.dataset
    kept = (dataset.product != "ETH-USD") | ~problem.split.test.mask(dataset.t_ns)
    evaluation = run(replace(problem, dataset=dataset.rows(kept), y=problem.y[kept]), models)
    report = evaluation.to_dict()
    assert "no test rows of ETH-USD: nothing was measured there" in report["notes"]
    assert report["counts"]["test"]["by_product"]["ETH-USD"] == {
        "rows": 0,
        "positives": 0,
        "base_rate": None,
    }
    for result in report["models"].values():
        assert result["measured_on"]["products"] == ["BTC-USD"]
        assert result["by_product"]["ETH-USD"]["average_precision"] is None
        assert result["by_product"]["BTC-USD"]["average_precision"] == result["average_precision"]
    check_report(report)
    card = render_model_card(evaluation.report)
    assert "- no test rows of ETH-USD: nothing was measured there" in card
    assert "nan" not in card.lower()
    assert plot_pr_curves(evaluation).startswith(PNG)


def test_a_constant_feature_is_not_read_and_named(short: tuple[Problem, dict[str, Model]]) -> None:
    problem, _ = short
    train = problem.split.train.mask(problem.dataset.t_ns)
    flat = problem.dataset.features.assign(noise=np.where(train, np.float32(1.5), np.float32(2)))
    posed = replace(
        problem, dataset=replace(problem.dataset, features=flat.astype(np.float32)), left_out=("crowd",)
    )
    models = {name: train_model(name, posed, SPEC, MODEL_SPEC, feature_hash="f00d") for name in MODELS}
    evaluation = run(posed, models)
    report = evaluation.to_dict()
    assert report["features"] == {
        "count": flat.shape[1],
        "constant_in_training": ["noise"],
        "left_out": ["crowd"],
    }
    assert report["notes"] == [
        "constant in training: noise",
        "hardly ever known in training, left out: crowd",
    ]
    assert all("noise" not in result["importances"] for result in report["models"].values())
    assert "- constant in training: noise\n" in render_model_card(evaluation.report)


@pytest.mark.parametrize(("score", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (1.25, "1.25"), (-1, "-1")])
def test_what_is_no_probability_ends_the_evaluation_and_is_named(
    score: float, shown: str, short: tuple[Problem, dict[str, Model]], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, models = short
    test, _ = problem.part(problem.split.test)
    scores = models["har_logit"].predict_proba(test.features)
    scores[7:9] = score
    monkeypatch.setattr(models["har_logit"], "predict_proba", lambda features: scores)
    says = (
        f"model har_logit: expected a probability for each of {len(test)} rows, found none for 2; the "
        f"first is {shown} of {test.product[7]} at {iso_utc(int(test.t_ns[7]))}"
    )
    with pytest.raises(ModelError, match=re.escape(says)):
        run(problem, models)


def test_a_long_test_is_told_by_calendar_month() -> None:
    dataset = make_problem(3_000).dataset
    hours = np.arange(len(dataset), dtype=np.int64) * 3_600 * NS
    long = replace(dataset, t_ns=hours + 1_700_000_000 * NS + dataset.bar_ns)
    unit, found = periods(long)
    starts = pd.to_datetime(long.t_ns - long.bar_ns, unit="ns").strftime("%Y-%m")
    assert unit == "month"
    assert list(found) == sorted(set(starts))
    assert np.sum(list(found.values()), axis=0).tolist() == [1] * len(long)
    for label, own in found.items():
        assert set(starts[own]) == {label}


def test_no_spike_in_validation_leaves_no_threshold_to_choose(
    short: tuple[Problem, dict[str, Model]],
) -> None:
    problem, models = short
    in_validation = problem.split.validation.mask(problem.dataset.t_ns)
    evaluation = run(replace(problem, y=problem.y & ~in_validation), models)
    for result in evaluation.to_dict()["models"].values():
        assert result["operating_points"]["max_f1"] is None
        assert result["episode_rule"] is None
    assert "max_f1" in render_model_card(evaluation.report)


def test_a_single_class_in_training_is_an_error(short: tuple[Problem, dict[str, Model]]) -> None:
    problem, models = short
    with pytest.raises(SingleClassError, match="training labels of BTC-USD, ETH-USD"):
        run(replace(problem, y=np.zeros(len(problem.dataset), dtype=bool)), models)


def test_nothing_to_evaluate_is_an_error(problem: Problem) -> None:
    with pytest.raises(ModelError, match="no model to evaluate"):
        run(problem, {})


def test_summary_rows_are_flat_and_sorted(evaluation: Evaluation) -> None:
    rows = evaluation.summary_rows()
    assert [row["model"] for row in rows] == sorted(
        MODELS, key=lambda name: -evaluation.to_dict()["models"][name]["average_precision"]
    )
    assert all(isinstance(value, str | float | int) for row in rows for value in row.values())
    assert summary_rows(read_report(encode(evaluation.report))) == rows


# --- pictures and card ------------------------------------------------------------------------------------


def pictures(evaluation: Evaluation) -> list[bytes]:
    return list(draw_evaluation(evaluation, None).values())


def test_pictures_are_png(evaluation: Evaluation, problem: Problem, models: dict[str, Model]) -> None:
    mid = make_bars(N_BARS, seed=SEED).to_frame()[["bar_start", "product", "close"]]
    drawn = [
        *pictures(evaluation),
        plot_episode(evaluation, mid),
        plot_sigma_distribution(problem),
        *[plot_importances(model) for model in models.values()],
    ]
    # Above, event logs leave them out.
    assert all(picture.startswith(PNG) and 2_000 < len(picture) < 100 * 1024 for picture in drawn)
    assert plot_episode(evaluation, mid) != plot_episode(evaluation)


def with_episodes(evaluation: Evaluation, *episodes: tuple[int, int, float]) -> Evaluation:
    """The same with these spikes alone, all of the first product: first row, last row and σ/τ."""
    rows = evaluation.predictions
    product = rows["product"].iloc[0]
    own = rows.index[rows["product"] == product]
    tau = evaluation.to_dict()["thresholds"][product]
    y, sigma = pd.Series(False, rows.index), pd.Series(0.0, rows.index)
    for first, last, excess in episodes:
        y[own[first : last + 1]], sigma[own[first : last + 1]] = True, excess * tau
    return replace(evaluation, predictions=rows.assign(y=y, sigma=sigma))


def test_the_episode_shown_is_the_most_violent_one_that_a_calm_precedes(evaluation: Evaluation) -> None:
    rows = evaluation.predictions
    own = rows.loc[rows["product"] == rows["product"].iloc[0], "bar_start"].reset_index(drop=True)
    calm = pd.Timedelta(seconds=10 * evaluation.to_dict()["horizon_s"])
    bars = int(calm / pd.Timedelta(seconds=evaluation.to_dict()["bar_interval_s"]))
    first, last = bars + 40, 2 * bars + 60
    # The worst begins with the test, the next one soon after another.
    shown = with_episodes(
        evaluation, (0, 5, 9.0), (first, last, 3.0), (last + bars // 2, last + bars // 2 + 5, 7.0)
    )
    stretch = most_violent_stretch(shown)
    assert (stretch.has_spike, stretch.after_calm) == (True, True)
    assert stretch.end == own[last] + calm
    # As long before the onset as afterwards, as far as there are rows.
    onset = own[first]
    assert stretch.start == max(own[0], onset - (stretch.end - onset)) <= onset - calm
    assert plot_episode(shown).startswith(PNG)


def test_a_short_episode_has_the_calm_of_ten_horizons_before_it(evaluation: Evaluation) -> None:
    rows = evaluation.predictions
    own = rows.loc[rows["product"] == rows["product"].iloc[0], "bar_start"].reset_index(drop=True)
    report = evaluation.to_dict()
    calm = pd.Timedelta(seconds=10 * report["horizon_s"])
    first = int(3 * calm / pd.Timedelta(seconds=report["bar_interval_s"]))
    stretch = most_violent_stretch(with_episodes(evaluation, (first, first + 9, 2.0)))
    assert stretch.end - own[first + 9] == calm
    assert own[first] - stretch.start == stretch.end - own[first]
    assert stretch.after_calm


def test_without_a_calm_the_worst_episode_is_shown_and_without_a_spike_the_worst_row(
    evaluation: Evaluation,
) -> None:
    rows = evaluation.predictions
    own = rows.loc[rows["product"] == rows["product"].iloc[0], "bar_start"].reset_index(drop=True)
    calm = pd.Timedelta(seconds=10 * evaluation.to_dict()["horizon_s"])
    spiky = with_episodes(evaluation, (0, 5, 9.0))
    assert most_violent_stretch(spiky)[1:] == (own[0] - calm, own[5] + calm, True, False)
    none = replace(spiky, predictions=spiky.predictions.assign(y=False))
    assert most_violent_stretch(none)[1:] == (own[0] - calm, own[0] + calm, False, False)
    assert plot_episode(none).startswith(PNG)


def test_pictures_touch_no_global_state(evaluation: Evaluation) -> None:
    import matplotlib.pyplot

    plot_pr_curves(evaluation)
    assert matplotlib.pyplot.get_fignums() == []


def test_predictions_survive_parquet(
    evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("predictions") / "part.parquet"
    evaluation.predictions.to_parquet(path)
    read = replace(evaluation, predictions=pd.read_parquet(path))
    assert plot_pr_curves(read) == plot_pr_curves(evaluation)


def test_the_card_shows_the_report_s_numbers(evaluation: Evaluation) -> None:
    card = render_model_card(evaluation.report, title="seconds, 60 s")
    assert card.startswith("# Model card: seconds, 60 s\n")
    assert "**Verdict: ok.**" in card
    for name, result in evaluation.to_dict()["models"].items():
        bounds = result["average_precision_interval"]
        cell = f"| {name} | {result['average_precision']:.3f} [{bounds['low']:.3f}, {bounds['high']:.3f}] |"
        assert cell in card
    for product, tau in evaluation.to_dict()["thresholds"].items():
        assert f"| {product} | {tau:.4g} |" in card
    onset = evaluation.to_dict()["models"]["ewma"]["onset"]
    bounds = onset["average_precision_interval"]
    shown = f"{onset['average_precision']:.3f} [{bounds['low']:.3f}, {bounds['high']:.3f}]"
    assert f"| ewma | {shown} | {onset['lift']:.2f} |" in card
    for one in evaluation.to_dict()["models"]["logreg"]["by_period"]:
        assert (
            f"| {one['period']} | {one['rows']:,} | {one['positives']:,} | {one['base_rate']:.3f} |" in card
        )
    assert f"It supports **{evaluation.to_dict()['sufficiency']['supports']}** of" in card
    assert f"- {evaluation.to_dict()['sufficiency']['missing'][0]}" in card
    assert "nan" not in card.lower()
    assert "None" not in card


def test_the_card_has_a_line_for_each_episode_rule(evaluation: Evaluation) -> None:
    lines = render_model_card(evaluation.report).splitlines()
    for name, result in evaluation.report.models.items():
        assert result.episode_rule is not None
        rule, test = result.episode_rule.rule, result.episode_rule.test
        (line,) = (one for one in lines if one.startswith(f"| {name} |") and " bars below " in one)
        assert f"| {rule.k} of {rule.n} bars at least {rule.enter:.3f} | {rule.m} bars below" in line
        assert f"{test.true_episodes} of {test.episodes} true, {test.events_found} of {test.events}" in line


def test_the_card_says_when_the_data_are_too_few(short: tuple[Problem, dict[str, Model]]) -> None:
    evaluation = run(*short)
    card = render_model_card(evaluation.report)
    assert "**Verdict: insufficient_data.**" in card
    assert f"- {evaluation.reasons[0]}" in card
    assert "too small to tell the models apart" in card


def test_the_card_tells_who_is_champion_of_what_features_and_how_to_reproduce_it(
    evaluation: Evaluation,
) -> None:
    report = structs.replace(evaluation.report, as_of="2026-04-04-06:00")
    measured = Measured.from_report(
        report,
        mlflow_run_ids=dict.fromkeys(MODELS, "run"),
        problem_hash="p",
        evaluation_hash="e",
        test=TimeRange(0, 10**19),
    )
    held = decided(measured, STANDING, hold_out(evaluation))
    context = CardContext(("ln_rv_60", "noise"), "http://dagster/features", {"numpy": "2.4", "xgboost": "3"})
    card = render_model_card(report, decision=held, context=context)
    for line in (
        f"Decision: **{held.verdict}**.",
        f"- {held.reasons[0]}",
        "2 features, version `f00d`",
        "[the asset's columns](http://dagster/features)",
        "cryptovol train --partition 2026-04-04-06:00",
        "Trained with numpy 2.4, xgboost 3.",
    ):
        assert line in card
    for heading in (
        "Intended use",
        "Out of scope",
        "What the training span supports",
        "Data",
        "Results on the test span",
        "Onset",
        "By product",
        "By day",
        "Calibration",
        "Events and operating points",
        "Limits",
        "In operation",
        "Ethics and money",
        "How to reproduce",
    ):
        assert f"\n## {heading}\n" in card
    assert held.challenge is not None
    assert f"| challenger | {held.challenge.challenger} |" in card
    first = render_model_card(report, decision=decided(measured, None, GivenRows()))
    assert (
        "Champion is **ewma**, trained as of 2026-04-04-06:00 (MLflow run `run`). It is **unproven**" in first
    )
    assert "None" not in card + first


def test_files_hold_their_keys_in_the_order_they_always_had(evaluation: Evaluation) -> None:
    result = next(iter(json.loads(encode(evaluation.report))["models"].values()))
    assert list(result)[:4] == ["measured_on", "rows", "positives", "base_rate"]
    assert list(result)[-7:] == [
        "by_product",
        "average_precision_interval",
        "onset",
        "by_period",
        "operating_points",
        "episode_rule",
        "importances",
    ]
    assert next(iter(result["by_period"][0])) == "period"
    assert list(result["operating_points"]["max_f1"])[-1] == "chosen_on"


def test_a_report_of_no_partition_decides_nothing(evaluation: Evaluation) -> None:
    with pytest.raises(EvaluationError, match="not of a partition"):
        Measured.from_report(
            evaluation.report,
            mlflow_run_ids={},
            problem_hash="p",
            evaluation_hash="e",
            test=TimeRange(0, 1),
        )
