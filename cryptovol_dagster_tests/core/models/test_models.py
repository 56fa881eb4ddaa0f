"""What every model must keep, run over every model there is."""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cryptovol_dagster.core.learning.dataset import Dataset, Problem, SingleClassError, pose_problem
from cryptovol_dagster.core.metrics.ranking import average_precision
from cryptovol_dagster.core.models import MODELS, Model, ModelError, load_model, train_model
from cryptovol_dagster.core.models.contributions import top_contributions
from cryptovol_dagster_tests.core.clustered_market import FEATURES, MODEL_SPEC, SPEC, make_problem

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(9_000, seed=2)


@pytest.fixture(scope="module")
def test_rows(problem: Problem) -> pd.DataFrame:
    return problem.part(problem.split.test)[0].features


def train(name: str, problem: Problem) -> Model:
    return train_model(name, problem, SPEC, MODEL_SPEC, feature_hash="f00d")


@pytest.fixture(scope="module")
def models(problem: Problem) -> dict[str, Model]:
    return {name: train(name, problem) for name in MODELS}


@every_model
def test_probabilities_are_finite_and_in_bounds(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    score = models[name].predict_proba(test_rows)
    assert score.dtype == np.float64
    assert score.shape == (len(test_rows),)
    assert ((score >= 0) & (score <= 1)).all()
    assert np.unique(score).size > 10
    assert models[name].predict_proba(test_rows.iloc[:0]).shape == (0,)


@every_model
def test_it_ranks_better_than_chance(name: str, models: dict[str, Model], problem: Problem) -> None:
    part, y = problem.part(problem.split.validation)
    assert average_precision(y, models[name].predict_proba(part.features)) > y.mean() + 0.2


@every_model
def test_the_same_seed_gives_the_same_model(
    name: str, models: dict[str, Model], problem: Problem, test_rows: pd.DataFrame
) -> None:
    again = train(name, problem)
    np.testing.assert_array_equal(again.predict_proba(test_rows), models[name].predict_proba(test_rows))


def test_another_seed_gives_other_trees(
    problem: Problem, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    """Else the test above would say nothing about the seed."""
    other = train_model(
        "xgboost", problem, SPEC, replace(MODEL_SPEC, seed=MODEL_SPEC.seed + 1), feature_hash="f00d"
    )
    assert not np.array_equal(other.predict_proba(test_rows), models["xgboost"].predict_proba(test_rows))


@every_model
def test_it_never_sees_the_future(
    name: str, models: dict[str, Model], problem: Problem, test_rows: pd.DataFrame
) -> None:
    """Whatever lies after validation, and between the parts, is turned upside down: nothing changes."""
    dataset, split = problem.dataset, problem.split
    strange = np.ones(len(dataset), dtype=bool)
    for part in (split.train, split.validation):
        strange[slice(*part.rows(dataset.t_ns))] = False
    assert strange.sum() > len(test_rows)
    features = dataset.features.copy()
    features.loc[strange] = 7.0 - 3.0 * features.loc[strange].to_numpy()[::-1]
    sigma = dataset.sigma.copy()
    sigma[strange] = 1 / sigma[strange]
    turned = pose_problem(replace(dataset, features=features, sigma=sigma), split, SPEC)
    assert turned.thresholds == problem.thresholds
    model = train(name, turned)
    np.testing.assert_array_equal(model.predict_proba(test_rows), models[name].predict_proba(test_rows))
    assert model.importances() == models[name].importances()


@every_model
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_a_constant_feature_changes_nothing(
    name: str, value: float, models: dict[str, Model], problem: Problem, test_rows: pd.DataFrame
) -> None:
    dataset = problem.dataset
    flat = replace(dataset, features=dataset.features.assign(flat=np.float32(value)))
    model = train(name, replace(problem, dataset=flat))
    assert "flat" in model.meta.inputs
    # Nor does it where it is no constant any more, on rows of another day.
    for later in (value, value + 1):
        with_flat = test_rows.copy()
        with_flat["flat"] = np.float32(later)
        score = model.predict_proba(with_flat)
        np.testing.assert_array_equal(score, models[name].predict_proba(test_rows))


@pytest.mark.parametrize("name", ["logreg", "xgboost"])
def test_where_nothing_varies_there_is_nothing_to_learn(name: str, problem: Problem) -> None:
    dataset = only(problem, ["noise"]).dataset
    flat = replace(dataset, features=dataset.features.assign(noise=np.float32(3.0)))
    with pytest.raises(ModelError, match=f"model {name}: each of its 1 features is constant in training"):
        train(name, replace(problem, dataset=flat))


@every_model
def test_validation_without_a_spike_can_be_trained_by(
    name: str, problem: Problem, test_rows: pd.DataFrame
) -> None:
    y = problem.y.copy()
    y[slice(*problem.split.validation.rows(problem.dataset.t_ns))] = False
    score = train(name, replace(problem, y=y)).predict_proba(test_rows)
    assert ((score >= 0) & (score <= 1)).all()


def test_every_kind_of_model_is_registered_under_its_name() -> None:
    def kinds(base: type[Model]) -> set[type[Model]]:
        found = {kind for kind in base.__subclasses__() if not inspect.isabstract(kind)}
        return found.union(*(kinds(kind) for kind in base.__subclasses__()))

    assert kinds(Model) == set(MODELS.values())
    assert [kind.name for kind in MODELS.values()] == list(MODELS)


@every_model
def test_column_order_does_not_matter(
    name: str, models: dict[str, Model], problem: Problem, test_rows: pd.DataFrame
) -> None:
    expected = models[name].predict_proba(test_rows)
    turned = test_rows.loc[:, test_rows.columns[::-1]]
    np.testing.assert_array_equal(models[name].predict_proba(turned), expected)
    dataset = problem.dataset
    reordered = replace(dataset, features=dataset.features[dataset.features.columns[::-1]])
    trained_on_turned = train(name, replace(problem, dataset=reordered))
    np.testing.assert_array_equal(trained_on_turned.predict_proba(test_rows), expected)


@every_model
def test_one_row_scores_as_it_does_among_many(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    many = models[name].predict_proba(test_rows.iloc[:20])
    single = [models[name].predict_proba(test_rows.iloc[k : k + 1])[0] for k in range(20)]
    np.testing.assert_allclose(single, many, rtol=1e-12)


@every_model
def test_missing_and_unknown_columns_are_refused_by_name(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    with pytest.raises(ModelError, match=f"model {name}: feature columns missing: ln_rv_300"):
        models[name].predict_proba(test_rows.drop(columns="ln_rv_300"))
    with pytest.raises(ModelError, match=f"model {name}: feature columns unknown to it: price"):
        models[name].predict_proba(test_rows.assign(price=1.0))


@every_model
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(
    name: str, value: float, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    model = models[name]
    broken = test_rows.copy()
    broken.loc[3, model.meta.features[0]] = value
    if np.isnan(value) and model.accepts_nan:
        assert np.isfinite(model.predict_proba(broken)).all()
    else:
        with pytest.raises(ModelError, match=f"model {name}: 1 of .* rows hold.*{model.meta.features[0]}"):
            model.predict_proba(broken)


@every_model
def test_stored_and_read_it_predicts_the_same_bits(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    data = models[name].to_bytes()
    for read in (load_model(data), MODELS[name].from_bytes(data)):
        np.testing.assert_array_equal(read.predict_proba(test_rows), models[name].predict_proba(test_rows))
        assert read.meta == models[name].meta
        assert read.importances() == models[name].importances()


@every_model
def test_the_file_says_what_it_is_and_holds_no_pickle(
    name: str, models: dict[str, Model], problem: Problem
) -> None:
    with zipfile.ZipFile(io.BytesIO(models[name].to_bytes())) as archive:
        meta = json.loads(archive.read("meta.json"))
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    assert meta["name"] == name
    assert meta["feature_hash"] == "f00d"
    assert meta["timescale"] == "seconds"
    assert meta["horizon_s"] == 60
    assert meta["thresholds"] == problem.thresholds
    assert set(meta["inputs"]) == set(FEATURES)
    assert set(meta["versions"]) == set(MODELS[name].libraries)
    train_rows = problem.part(problem.split.train)[0]
    assert (meta["train_start_ns"], meta["train_end_ns"]) == (train_rows.t_ns.min(), train_rows.t_ns.max())
    assert not any(content.startswith(b"\x80") for content in parts.values())


@every_model
def test_a_file_of_something_else_is_refused(name: str, models: dict[str, Model]) -> None:
    data = models[name].to_bytes()
    with pytest.raises(ModelError, match="not a cryptovol model file"):
        load_model(b"garbage")
    with pytest.raises(ModelError, match="not a cryptovol model file"):
        load_model(data[: len(data) // 2])
    other = next(kind for kind in MODELS if kind != name)
    with pytest.raises(ModelError, match=f"the file contains a model {name}, not {other}"):
        MODELS[other].from_bytes(data)


def rewritten(data: bytes, change: dict[str, bytes | None]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.namelist():
            content = change.get(entry, old.read(entry))
            if content is not None:
                new.writestr(entry, content)
    return buffer.getvalue()


@every_model
def test_a_damaged_file_is_refused(name: str, models: dict[str, Model]) -> None:
    data = models[name].to_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (parameters,) = set(archive.namelist()) - {"meta.json"}
        meta = json.loads(archive.read("meta.json"))
    with pytest.raises(ModelError, match=f"the file of model {name} lacks {parameters}"):
        load_model(rewritten(data, {parameters: None}))
    with pytest.raises(ModelError, match=f"model {name}"):
        load_model(rewritten(data, {parameters: b"noise"}))
    newer = json.dumps(meta | {"format_version": 99}).encode()
    with pytest.raises(ModelError, match="format 99"):
        load_model(rewritten(data, {"meta.json": newer}))
    renamed = json.dumps(meta | {"name": "oracle"}).encode()
    with pytest.raises(ModelError, match="there is no model oracle"):
        load_model(rewritten(data, {"meta.json": renamed}))


@every_model
@pytest.mark.parametrize(("value", "words"), [(False, "no positives"), (True, "only positives")])
def test_a_single_class_cannot_be_learned(name: str, value: bool, words: str, problem: Problem) -> None:
    uniform = replace(problem, y=np.full(len(problem.dataset), value))
    with pytest.raises(SingleClassError, match=f"BTC-USD, ETH-USD 2026.*{words}"):
        train(name, uniform)


@every_model
def test_features_a_model_needs_are_asked_for(name: str, problem: Problem) -> None:
    if name in ("logreg", "xgboost"):
        assert train(name, only(problem, ["noise"])).meta.features == ("noise",)
    else:
        with pytest.raises(ModelError, match=f"model {name} needs"):
            train(name, only(problem, ["noise"]))


def only(problem: Problem, columns: list[str]) -> Problem:
    return replace(problem, dataset=replace(problem.dataset, features=problem.dataset.features[columns]))


@every_model
def test_labels_moved_in_time_teach_nothing(name: str, problem: Problem) -> None:
    """A model that still ranked after this would know more than the features tell."""
    random = np.random.default_rng(11)
    shuffled = replace(problem, y=random.permutation(problem.y))
    model = train(name, shuffled)
    part, y = shuffled.part(problem.split.test)
    assert average_precision(y, model.predict_proba(part.features)) < 1.25 * y.mean()


@every_model
def test_importances_name_the_features_read(name: str, models: dict[str, Model]) -> None:
    weights = models[name].importances()
    assert set(weights) == set(models[name].meta.features)
    magnitudes = np.abs(list(weights.values()))
    assert (np.diff(magnitudes) <= 0).all()


def test_baselines_read_what_their_names_say(models: dict[str, Model]) -> None:
    assert models["baseline_zscore"].meta.features == ("ln_rv_60",)
    assert models["ewma"].meta.features[0] in ("ln_ewma_r2_20", "ln_ewma_r2_300")
    assert models["har_logit"].meta.features == ("ln_rv_15", "ln_rv_60", "ln_rv_300", "ln_rv_900")


def test_the_baseline_keeps_the_order_of_volatility(
    models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    order = np.argsort(test_rows["ln_rv_60"].to_numpy(), kind="stable")
    assert (np.diff(models["baseline_zscore"].predict_proba(test_rows)[order]) >= 0).all()


def test_ewma_is_chosen_on_training_rows(problem: Problem) -> None:
    def score(dataset: Dataset, y: np.ndarray, column: str) -> float:
        return average_precision(y, dataset.features[column].to_numpy())

    rows, y = problem.part(problem.split.train)
    columns = ("ln_ewma_r2_20", "ln_ewma_r2_300")
    best = max(columns, key=lambda column: score(rows, y, column))
    assert train("ewma", problem).meta.features == (best,)


def test_boosting_stops_early_and_keeps_only_what_counts(problem: Problem) -> None:
    noise = only(problem, ["noise"])
    booster = train("xgboost", noise).booster  # pyright: ignore[reportAttributeAccessIssue] - the boosted kind
    assert booster.num_boosted_rounds() < MODEL_SPEC.xgboost_trees


def test_an_unknown_name_lists_the_known(problem: Problem) -> None:
    with pytest.raises(ModelError, match="there is no model prophet; there are persistence, baseline_zscore"):
        train("prophet", problem)


def test_an_unfitted_model_says_so() -> None:
    with pytest.raises(ModelError, match="model logreg has not been fitted"):
        MODELS["logreg"]().predict_proba(pd.DataFrame({"noise": [1.0]}))


def test_types_that_could_run_code_are_not_loaded(models: dict[str, Model]) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    foreign = skops.io.dumps(FunctionTransformer(np.random.default_rng))
    data = rewritten(models["logreg"].to_bytes(), {"pipeline.skops": foreign})
    with pytest.raises(ModelError, match="the file of model logreg contains types that are not trusted"):
        load_model(data)


@pytest.fixture(scope="module")
def holed(problem: Problem) -> Problem:
    """The problem with one more feature, optional and known in half of the rows."""
    features = problem.dataset.features.copy()
    random = np.random.default_rng(3)
    numbers = 5.0 + features["ln_rv_60"].to_numpy()
    features["ln_ewma_optional"] = np.where(random.random(len(features)) < 0.5, numbers, np.nan)
    dataset = replace(problem.dataset, features=features, optional=frozenset({"ln_ewma_optional"}))
    return replace(problem, dataset=dataset)


@pytest.mark.parametrize("name", ["logreg", "xgboost"])
def test_an_optional_feature_may_lack_a_value(name: str, holed: Problem) -> None:
    model = train(name, holed)
    assert model.meta.optional == ("ln_ewma_optional",)
    rows, _ = holed.part(holed.split.test)
    score = model.predict_proba(rows.features)
    assert np.isfinite(score).all()
    read = load_model(model.to_bytes())
    np.testing.assert_array_equal(read.predict_proba(rows.features), score)
    assert read.meta == model.meta
    infinite = rows.features.assign(ln_ewma_optional=np.inf)
    with pytest.raises(ModelError, match="missing or infinite value in ln_ewma_optional"):
        model.predict_proba(infinite)


def test_a_linear_model_takes_the_training_mean_for_what_is_unknown(holed: Problem) -> None:
    model = train("logreg", holed)
    rows, _ = holed.part(holed.split.test)
    fit_rows, _ = holed.part(holed.split.train)
    mean = fit_rows.features["ln_ewma_optional"].mean()
    assert np.isnan(rows.features["ln_ewma_optional"]).any()
    filled = rows.features.fillna({"ln_ewma_optional": mean})
    # The mean passes through float32 when it is given as a value.
    np.testing.assert_allclose(model.predict_proba(rows.features), model.predict_proba(filled), rtol=1e-6)
    moved = rows.features.fillna({"ln_ewma_optional": mean + 1})
    assert not np.allclose(model.predict_proba(rows.features), model.predict_proba(moved), rtol=1e-6)


@every_model
def test_contributions_add_up_to_the_log_odds(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    """An unknown value, where the model accepts one, has a share too."""
    rows = test_rows.copy()
    if models[name].accepts_nan:
        rows.iloc[::7, :3] = np.nan
    shares, probability = models[name].contributions(rows), models[name].predict_proba(rows)
    assert tuple(shares.columns) == models[name].meta.features
    log_odds = np.log(probability / (1 - probability))
    np.testing.assert_allclose(shares.sum(axis=1) + models[name].base_log_odds, log_odds, rtol=0, atol=1e-5)
    assert shares.to_numpy().std() > 0
    assert models[name].contributions(rows.iloc[:0]).shape == (0, len(models[name].meta.features))


def test_an_unknown_optional_value_has_no_share_in_a_logistic_model(
    problem: Problem, test_rows: pd.DataFrame
) -> None:
    name = "noise"
    optional = replace(problem, dataset=replace(problem.dataset, optional=frozenset({name})))
    model, rows = train("logreg", optional), test_rows.iloc[:1].copy()
    rows[name] = np.nan
    assert model.contributions(rows)[name].tolist() == [0.0]


@every_model
def test_the_greatest_contributions_come_first_with_their_values(
    name: str, models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    rows = test_rows.iloc[:3].copy()
    if models[name].accepts_nan:
        rows.iloc[2, :] = np.nan
    shares = models[name].contributions(rows)
    for row, found in enumerate(top_contributions(models[name], rows)):
        own = shares.iloc[row]
        order = np.argsort(-own.abs().to_numpy(), kind="stable")[:5]
        assert [one.feature for one in found] == [own.index[k] for k in order if own.iloc[k] != 0]
        assert 1 <= len(found) <= 5
        for one in found:
            value = rows.iloc[row][one.feature]
            assert one.value == (None if np.isnan(value) else value)
            assert one.log_odds == own[one.feature]


def test_a_kind_without_exact_contributions_refuses_to_attribute(
    models: dict[str, Model], test_rows: pd.DataFrame
) -> None:
    class Opaque(type(models["ewma"])):
        name = "opaque"
        base_log_odds = Model.base_log_odds
        _contributions = Model._contributions

    opaque = Opaque()
    opaque.meta = models["ewma"].meta
    message = "model opaque: its log-odds cannot be attributed to features exactly"
    with pytest.raises(ModelError, match=message):
        opaque.contributions(test_rows)
    with pytest.raises(ModelError, match=message):
        _ = opaque.base_log_odds
