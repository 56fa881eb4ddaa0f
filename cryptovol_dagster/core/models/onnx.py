"""Fitted models as ONNX graphs, which score one row in microseconds, and the check that both agree.

The graph of trees is written here, without a converter: that would be three more packages, and the order in
which leaves are added decides the last digits. The graph adds them as XGBoost does (the intercept first, then
tree by tree, in float32) and uses the same logistic function, so both have the same bits on most machines.
Logistic models sum in float64, as the original does. An unknown value follows XGBoost's default direction,
which is `nodes_missing_value_tracks_true` of ONNX ML's `TreeEnsembleRegressor`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cryptovol_dagster.core.models.base import Model, ModelError
from cryptovol_dagster.core.models.boosting import BoostedTrees
from cryptovol_dagster.core.models.logistic import LogisticModel

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Probabilities may differ by this much, on any row.
MAX_DIFFERENCE = 1e-6
#: Old enough for any recent runtime, and new enough for double sums.
_OPSET, _ML_OPSET, _IR_VERSION = 17, 3, 8
_INPUT, _OUTPUT = "features", "probability"


class ParityError(ModelError):
    """Two back ends of one model disagree; the message is one line with the worst row."""


class Parity(NamedTuple):
    """Comparison of a back end with its model.

    Attributes:
        rows: number of rows compared.
        max_difference: largest difference of the probabilities.
        flags_differ: number of rows at the threshold of the operating point that only one of them flags.
    """

    rows: int
    max_difference: float
    flags_differ: int


def to_onnx(model: Model, notes: Mapping[str, str] | None = None) -> bytes:
    """Write a fitted model as an ONNX graph: float32 rows of `meta.features`, in order, to probabilities.

    Args:
        model: a fitted model.
        notes: further metadata of the file, beside name, features, horizon and hashes.

    Raises:
        ModelError: the model's kind has no graph.

    Examples:
        >>> from cryptovol_dagster.core.samples import model
        >>> notes = OnnxScorer(to_onnx(model("ewma"))).notes
        >>> notes["name"]
        'ewma'
    """
    from onnx import TensorProto, helper

    if isinstance(model, BoostedTrees):
        nodes, constants, out_type = _trees(model)
    elif isinstance(model, LogisticModel):
        nodes, constants, out_type = _logit(model)
    else:
        raise ModelError(f"model {model.name} cannot be written as ONNX")
    graph = helper.make_graph(
        nodes,
        f"cryptovol-{model.name}",
        [helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, [None, len(model.meta.features)])],
        [helper.make_tensor_value_info(_OUTPUT, out_type, [None, 1])],
        constants,
    )
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    written = helper.make_model(graph, opset_imports=opsets, producer_name="cryptovol")
    written.ir_version = _IR_VERSION
    meta = model.meta
    known = {
        "name": meta.name,
        "timescale": meta.timescale,
        "horizon_s": f"{meta.horizon_s:g}",
        "features": json.dumps(meta.features),
        "feature_hash": meta.feature_hash,
        **({"reference_set": json.dumps(meta.cross_set)} if meta.cross_set else {}),
        "problem_hash": meta.problem_hash,
        "thresholds": json.dumps(dict(meta.thresholds)),
    }
    helper.set_model_props(written, {**known, **(notes or {})})
    return written.SerializeToString()


def checked_graph(model: Model, features: pd.DataFrame) -> tuple[bytes, Parity]:
    """Write a model as `to_onnx` does, compare the graph with it, and store the comparison in the file.

    Args:
        model: a fitted model.
        features: rows to compare on.

    Raises:
        ParityError: the graph disagrees with the model.
        ModelError: the model's kind has no graph, or the model refuses the rows.

    Examples:
        >>> from cryptovol_dagster.core.samples import model, problem
        >>> rows, _ = problem().part(problem().split.test)
        >>> _, parity = checked_graph(model("xgboost"), rows.features)
        >>> parity.rows, parity.max_difference < MAX_DIFFERENCE
        (1440, True)
    """
    parity = compare(model, "its ONNX graph", OnnxScorer(to_onnx(model)).predict, features)
    notes = {"parity_rows": str(parity.rows), "parity_max_difference": f"{parity.max_difference:g}"}
    return to_onnx(model, notes), parity


class OnnxScorer:
    """A graph in onnxruntime, by default on one thread: single rows gain nothing from a second one."""

    def __init__(self, content: bytes, threads: int = 1) -> None:
        """Load a graph of `to_onnx`.

        Args:
            content: bytes of the file.
            threads: number of threads of a call.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.notes: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def predict(self, X: NDArray[np.float32]) -> NDArray[Any]:
        """Return one probability per row; columns as the model's `meta.features`."""
        answer: Any = self._session.run([_OUTPUT], {_INPUT: X})[0]
        return answer[:, 0]


def compare(
    model: Model,
    name: str,
    predict: Callable[[NDArray[np.float32]], NDArray[Any]],
    features: pd.DataFrame,
    threshold: float | None = None,
) -> Parity:
    """Score the same rows with a model and with another back end of it.

    Args:
        model: a fitted model.
        name: name of the back end, for the error message.
        predict: the back end: maps rows of `meta.features` to one probability each.
        features: rows that the model can score.
        threshold: threshold of the operating point; None where there is none.

    Raises:
        ParityError: a probability differs by more than `MAX_DIFFERENCE`, or a flag differs though the score
            is farther than that from the threshold.
        ModelError: a column is missing or unknown, or contains a value that is not allowed.
    """
    expected = model.predict_proba(features)
    found = predict(model.matrix(features)).astype(np.float64)
    difference = np.abs(found - expected)
    # A difference that is not a number counts as too large.
    if difference.size and not np.all(difference <= MAX_DIFFERENCE):
        worst = int(np.argmax(difference))
        raise ParityError(
            f"model {model.name}: {name} gives {found[worst]:.9g} for row {worst}, the model itself "
            f"{expected[worst]:.9g}; they may differ by {MAX_DIFFERENCE:g} at most"
        )
    flags_differ = 0
    if threshold is not None:
        # The threshold is the score of a row: rounding can move such a row to either side.
        edge = np.abs(expected - threshold) <= MAX_DIFFERENCE
        unlike = (found >= threshold) != (expected >= threshold)
        if wrong := int(np.sum(unlike & ~edge)):
            raise ParityError(
                f"model {model.name}: {wrong} of {len(expected)} rows are flagged by only one of the model "
                f"and {name} at {threshold:.6g}"
            )
        flags_differ = int(np.sum(unlike))
    return Parity(int(expected.size), float(difference.max(initial=0.0)), flags_differ)


#: Fields that only splits of an ensemble have, in the order of the argument of `_Ensemble.split`.
_SPLIT_FIELDS = ("featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")


class _Ensemble:
    """Attributes of a `TreeEnsembleRegressor`: one list per field, over all nodes or leaves."""

    def __init__(self) -> None:
        names = ("treeids", "nodeids", "featureids", "modes", "values")
        names += ("truenodeids", "falsenodeids", "missing_value_tracks_true", "hitrates")
        self._nodes: dict[str, list[Any]] = {name: [] for name in names}
        self._leaves: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "weights", "ids")}

    def leaf(self, tree: int, at: int, weight: float) -> None:
        """Add a leaf."""
        self._node(tree, at, "LEAF", (0, 0.0, 0, 0, 0))
        for name, value in (("treeids", tree), ("nodeids", at), ("weights", weight), ("ids", 0)):
            self._leaves[name].append(value)

    def split(self, tree: int, at: int, fields: tuple[Any, ...]) -> None:
        """Add a split, with the fields of `_SPLIT_FIELDS`."""
        self._node(tree, at, "BRANCH_LT", fields)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes under ONNX's names."""
        attributes: dict[str, Any] = {f"nodes_{name}": values for name, values in self._nodes.items()}
        return attributes | {f"target_{name}": values for name, values in self._leaves.items()}

    def _node(self, tree: int, at: int, mode: str, split: tuple[Any, ...]) -> None:
        own = {"treeids": tree, "nodeids": at, "modes": mode, "hitrates": 1.0}
        for name, value in {**own, **dict(zip(_SPLIT_FIELDS, split, strict=True))}.items():
            self._nodes[name].append(value)


def _trees(model: BoostedTrees) -> tuple[list[Any], list[Any], int]:
    from onnx import TensorProto, helper, numpy_helper

    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [_INPUT],
        ["log_odds"],
        domain="ai.onnx.ml",
        n_targets=1,
        post_transform="NONE",
        **_ensemble(model).attributes(),
    )
    # The logistic function of XGBoost in float32. ONNX's Sigmoid and the ensemble's own are approximations,
    # and the last digit matters: the threshold of the operating point is the score of a row.
    one = numpy_helper.from_array(np.ones(1, dtype=np.float32), "one")
    logistic = [
        helper.make_node("Neg", ["log_odds"], ["negated"]),
        helper.make_node("Cast", ["negated"], ["exact"], to=TensorProto.DOUBLE),
        helper.make_node("Exp", ["exact"], ["odds_against"]),
        helper.make_node("Cast", ["odds_against"], ["rounded"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["rounded", "one"], ["denominator"]),
        helper.make_node("Div", ["one", "denominator"], [_OUTPUT]),
    ]
    return [ensemble, *logistic], [one], TensorProto.FLOAT


def _ensemble(model: BoostedTrees) -> _Ensemble:
    learner = json.loads(bytes(model.booster.save_raw("json")))["learner"]
    ensemble = _Ensemble()
    # The intercept is a tree of one leaf: added first, as XGBoost does.
    ensemble.leaf(0, 0, _intercept(learner))
    for number, tree in enumerate(learner["gradient_booster"]["model"]["trees"], 1):
        for at, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"], strict=True)):
            value = tree["split_conditions"][at]
            if left == -1:
                ensemble.leaf(number, at, value)
            else:
                feature, default_left = tree["split_indices"][at], int(tree["default_left"][at])
                ensemble.split(number, at, (feature, value, left, right, default_left))
    return ensemble


def _intercept(learner: Mapping[str, Any]) -> float:
    """Return the log-odds of XGBoost's base score, which its newer versions write as a list of one."""
    text = str(learner["learner_model_param"]["base_score"]).strip("[]")
    share = np.float32(text)
    return float(-np.log(np.float32(1) / share - np.float32(1)))


def _logit(model: LogisticModel) -> tuple[list[Any], list[Any], int]:
    from onnx import TensorProto, helper, numpy_helper

    folded = model.folded()
    constants = [
        numpy_helper.from_array(np.asarray(values, dtype=np.float64), name)
        for name, values in (
            ("means", folded.means[None, :]),
            ("weights", folded.weights[:, None]),
            ("intercept", [folded.intercept]),
            ("zero", [0.0]),
        )
    ]
    nodes = [
        helper.make_node("Cast", [_INPUT], ["exact"], to=TensorProto.DOUBLE),
        helper.make_node("Sub", ["exact", "means"], ["away"]),
        helper.make_node("IsNaN", ["away"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "away"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["sum"]),
        helper.make_node("Add", ["sum", "intercept"], ["log_odds"]),
        helper.make_node("Sigmoid", ["log_odds"], [_OUTPUT]),
    ]
    return nodes, constants, TensorProto.DOUBLE
