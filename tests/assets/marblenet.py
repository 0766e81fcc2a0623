"""Makes marblenet.onnx, a model of MarbleNet's inputs and outputs with other weights: needs the package onnx."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

weights = np.zeros((2, 80, 2), dtype=np.float32)
weights[1] = 0.01  # speech: the sum of both frames' bands
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["processed_signal", "w", "b"], ["c"], strides=[2]),
        helper.make_node("Transpose", ["c"], ["output"], perm=[0, 2, 1]),
    ],
    "marblenet",
    [
        helper.make_tensor_value_info("processed_signal", TensorProto.FLOAT, ["batch", 80, "t"]),
        helper.make_tensor_value_info("processed_signal_length", TensorProto.INT64, ["batch"]),
    ],
    [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "t2", 2])],
    [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array([0, 10], np.float32), "b"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.save(model, Path(__file__).with_suffix(".onnx"))
