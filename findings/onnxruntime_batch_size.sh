#!/usr/bin/env bash
# Library:  onnxruntime 1.32.0, operator TreeEnsembleRegressor
# Expected: A row has one score, whether it is scored alone or among a thousand rows.
# Happens:  With two threads the last bits of most rows' scores differ between a row alone and the
#           same row in a batch.
# For us:   Our sessions run on one thread, where a row has one score: an operating point is the
#           score of a row.
set -euo pipefail
VERSION=${VERSION:-1.32.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check uv
env/bin/uv pip install --quiet --python env/bin/python "onnxruntime==$VERSION" onnx==1.23.2 numpy==2.4.6

env/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

TREES, COLUMNS, ROWS = 200, 5, 1_000
rng = np.random.default_rng(0)
node = helper.make_node(
    "TreeEnsembleRegressor",
    ["x"],
    ["y"],
    domain="ai.onnx.ml",
    n_targets=1,
    nodes_treeids=np.repeat(np.arange(TREES), 3).tolist(),
    nodes_nodeids=[0, 1, 2] * TREES,  # a root and its two leaves
    nodes_modes=["BRANCH_LT", "LEAF", "LEAF"] * TREES,
    nodes_featureids=[i for column in rng.integers(COLUMNS, size=TREES) for i in (int(column), 0, 0)],
    nodes_values=[v for cut in rng.normal(size=TREES) for v in (float(cut), 0.0, 0.0)],
    nodes_truenodeids=[1, 0, 0] * TREES,
    nodes_falsenodeids=[2, 0, 0] * TREES,
    target_treeids=np.repeat(np.arange(TREES), 2).tolist(),
    target_nodeids=[1, 2] * TREES,
    target_ids=[0] * (2 * TREES),
    target_weights=rng.normal(size=2 * TREES).tolist(),
)
graph = helper.make_graph(
    [node],
    "trees",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, COLUMNS])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
)
model = helper.make_model(
    graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)]
)
model.ir_version = 9
x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)


def differing(threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batch = session.run(None, {"x": x})[0]
    alone = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(ROWS)])
    return int((batch != alone).sum())


one, two = differing(1), differing(2)
print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, {TREES} trees")
print(f"expected: 0 of {ROWS:,} rows score differently alone and in one batch")
print(f"happened: {one} with one thread, {two} with two threads")
if one or not two:
    sys.exit("changed: threads and batches no longer change a score's bits in this way")
PYTHON
