"""A small writer of ONNX graphs: each call adds a node and returns the name of its output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Nodes are named SCOPE/OP.NUMBER; `scope` can be changed at any time."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.scope = "model"
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; its output's name, or a list of them for several outputs."""
        name = f"{self.scope}/{op}.{len(self.nodes)}"
        names = [f"{name}:{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: npt.ArrayLike, dtype: Any = np.float32) -> str:
        name = f"constant.{len(self.initializers)}"
        array = np.asarray(value, dtype=dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int, std: float = 0.25, mean: float = 0.0) -> str:
        return self.constant(mean + std * self.random.standard_normal(shape))

    def size(self, value: str, axis: int) -> str:
        """The size of one axis as int64 [1]."""
        return self.node("Gather", self.node("Shape", value), self.ints(axis), axis=0)

    def save(self, path: Path, *, output: str, vocab: int, opset: int) -> None:
        logits = self.node("Identity", output)
        self.nodes[-1].output[0] = logits = "logits"
        graph = helper.make_graph(
            self.nodes,
            "main",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
            [
                helper.make_tensor_value_info(
                    logits, TensorProto.FLOAT, ["batch", "sequence", vocab]
                )
            ],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
