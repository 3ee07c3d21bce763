"""The float block of the same shape, `nn.FloatBlock` as an ONNX graph for several tokens from the zero state: what the integer circuit is held against.

RMSNorm, softplus step sizes, SiLU, a decay for each head, as a PyTorch export would state them (one Conv, one Gemm a projection, one step a token). Knows
onnx and the shape; weights are float32 arrays under the names of `nn.FloatBlock`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mamba_integer.circuit.graph import IR_VERSION, OPSET
from mamba_integer.config import ModelConfig

Floats = npt.NDArray[np.float32]


def random_weights(config: ModelConfig, seed: int) -> dict[str, Floats]:
    """As `nn.FloatBlock` starts: projections of variance 1/columns, time constants spread by octaves."""
    c, r = config, np.random.default_rng(seed)
    D, E, H = c.d_model, c.d_inner, c.n_heads
    step = np.geomspace(0.1, 0.001, H)
    weights = {
        "norm1": np.ones(D),
        "in_proj": r.standard_normal((c.d_in_proj, D)) * D**-0.5,
        "conv_weight": r.random((c.d_conv, 4)) - 0.5,
        "conv_bias": np.zeros(c.d_conv),
        "log_a": np.log(2.0 ** -np.arange(1, H + 1) / step),
        "base": step + np.log(-np.expm1(-step)),
        "skip": np.ones(H),
        "norm2": np.ones(E),
        "out_proj": r.standard_normal((D, E)) * E**-0.5,
    }
    return {name: w.astype(np.float32) for name, w in weights.items()}


def float_block(config: ModelConfig, weights: Mapping[str, Floats], T: int) -> Any:
    """ONNX model: input `r` float32 [T, D], output `output` [T, D]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    c = config
    D, E, N, H = c.d_model, c.d_inner, c.d_state, c.n_heads
    P = E // H
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def shape(x: str, *dims: int) -> str:
        return op("Reshape", x, constant(dims, np.int64))

    def part(x: str, start: int, end: int, axis: int) -> str:
        return op("Slice", x, *(constant([v], np.int64) for v in (start, end, axis)))

    def norm(x: str, gain: Floats) -> str:
        mean = op("ReduceMean", op("Mul", x, x), axes=[1], keepdims=1)
        root = op("Reciprocal", op("Sqrt", op("Add", mean, constant([1e-5]))))
        return op("Mul", op("Mul", x, root), constant(gain))

    def silu(x: str) -> str:
        return op("Mul", x, op("Sigmoid", x))

    projected = op("MatMul", norm("r", weights["norm1"]), constant(weights["in_proj"].T))
    edges = np.cumsum([0, E, c.d_conv, H]).tolist()
    z, xbc, dt = (part(projected, a, b, 1) for a, b in pairwise(edges))

    kernel = constant(weights["conv_weight"][:, None, :])
    rows = shape(op("Transpose", xbc, perm=[1, 0]), 1, c.d_conv, T)
    convolved = op("Conv", rows, kernel, constant(weights["conv_bias"]), group=c.d_conv, pads=[3, 0], strides=[1])
    active = silu(op("Transpose", shape(convolved, c.d_conv, T), perm=[1, 0]))
    x, B, C = (part(active, a, b, 1) for a, b in ((0, E), (E, E + N), (E + N, E + 2 * N)))

    step = op("Log", op("Add", op("Exp", op("Add", dt, constant(weights["base"]))), constant([1.0])))
    keep = op("Exp", op("Mul", step, constant(-np.exp(weights["log_a"]))))
    heads = shape(x, T, H, P)
    gated = op("Mul", heads, shape(step, T, H, 1))
    h = ""
    ys = []
    for t in range(T):
        v, b, k = part(gated, t, t + 1, 0), part(B, t, t + 1, 0), part(keep, t, t + 1, 0)
        new = op("Mul", shape(v, H, P, 1), shape(b, 1, 1, N))
        h = op("Add", op("Mul", h, shape(k, H, 1, 1)), new) if h else new
        ys.append(shape(op("MatMul", h, shape(part(C, t, t + 1, 0), N, 1)), 1, E))
    y = op("Concat", *ys, axis=0) if T > 1 else ys[0]
    y = op("Add", y, op("Mul", x, constant(np.repeat(weights["skip"], P))))
    o = norm(op("Mul", y, silu(z)), weights["norm2"])
    nodes.append(helper.make_node("Add", ["r", op("MatMul", o, constant(weights["out_proj"].T))], ["output"]))

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [T, D])

    graph = helper.make_graph(nodes, "float_mamba", [info("r")], [info("output")], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model
