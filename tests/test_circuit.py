"""The circuits for EZKL: the same integers in ONNX Runtime as in the reference, one witness and no other, and a real proof where EZKL is installed."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_integer import arithmetic as ar
from mamba_integer.circuit import available, ezkl, report
from mamba_integer.circuit.baseline import float_block, random_weights
from mamba_integer.circuit.block import block, digest_of, of_tokens, whole
from mamba_integer.circuit.graph import EXACT, SOUND, Graph, survives
from mamba_integer.config import ModelConfig
from mamba_integer.errors import ArgumentError, ProofError
from mamba_integer.model_file import IntegerModel, write_model
from mamba_integer.random_model import Stream, random_model
from mamba_integer.reference import Reference

BEYOND = (
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.Fail,
)  # an index beyond the table


def small(seed: int, *, hostile: bool = False, k: int = 0, **fixed: Any) -> IntegerModel:
    """A random model of a kind that can be exported; `k` replaces the heads' time scales."""
    r = Stream(seed, 4)
    values: dict[str, Any] = {
        name: int(r.integers(low, high))
        for name, low, high in (("d_model", 3, 12), ("n_layers", 1, 2), ("n_heads", 1, 3), ("head_dim", 1, 4))
    }
    values |= {"d_state": 2 * int(r.integers(1, 3)), "vocab_size": 11, "context_length": 0}
    values |= {"norm_mantissa": r.choice([8, 0]), "weights": r.choice(["int8", "ternary"])}
    values |= {name: r.choice(["squareplus", "silu"]) for name in ("activation", "gate")}
    values |= {"norm_scale": r.choice(["channel", "scalar"])}
    model = random_model(ModelConfig.from_dict({**values, **fixed}), seed, hostile=hostile)
    for name, tensor in model.tensors.items():
        if k and name.endswith("scan.k"):
            tensor[:] = k
    return model


def session(graph: Graph) -> Any:
    """An ONNX Runtime session that gives the outputs and `limbs`, all numbers that are looked up in the table."""
    model = graph.model()
    model.graph.output.append(onnx.ValueInfoProto(name="limbs"))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def run(graph: Graph, inputs: dict[str, ar.Ints] | None = None, opened: Any = None) -> dict[str, ar.Ints]:
    opened = opened or session(graph)
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(None, inputs or graph.inputs), strict=True))


def accepted(graph: Graph, inputs: dict[str, ar.Ints], opened: Any = None) -> bool:
    """Whether the circuit admits these inputs: every limb in the table (which EZKL enforces) and the public checks what a verifier demands."""
    try:
        out = run(graph, inputs, opened)
    except BEYOND:
        return False
    in_table = bool(((out["limbs"] >= 0) & (out["limbs"] < 1 << graph.table_bits)).all())
    return in_table and tuple(out["checks"]) == SOUND


# ---- the same integers -----------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 5), st.booleans())
def test_a_random_block_gives_the_reference_s_integers(seed: int, tokens: int, hostile: bool) -> None:
    model = small(seed, hostile=hostile)
    limit = (1 << 17) - 1 if seed & 1 else 4000
    r = Stream(seed, 5).integers(-limit, limit, (tokens, model.config.d_model))
    layer = model.config.n_layers - 1
    reference = Reference(model)
    wanted = np.stack([reference._layer(layer, row) for row in r])
    graph = block(model, layer, r)
    out = run(graph)
    assert (out["input"] == r).all()
    assert (out["output"] == wanted).all()
    assert tuple(out["checks"]) == SOUND
    assert out["limbs"].min() >= 0
    assert out["limbs"].max() < 1 << graph.table_bits


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 4), st.booleans())
def test_a_whole_random_model_gives_the_reference_s_logits(seed: int, tokens: int, hostile: bool) -> None:
    model = small(seed, hostile=hostile)
    ids = Stream(seed, 5).integers(0, 10, (tokens,))
    out = run(whole(model, ids))
    assert (out["output"] == Reference(model).logits(ids)).all()
    assert (out["input"] == ids).all()
    assert tuple(out["checks"]) == SOUND


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_one_circuit_serves_every_input(layer: int | None) -> None:
    model = small(3, n_layers=2)
    digests = set()
    for seed in range(3):
        graph, about = of_tokens(model, Stream(seed).integers(0, 10, (3,)).tolist(), layer, 15)
        statement = {**about, "table_bits": 15, "input": graph.outputs["input"].tolist()}
        digests |= {
            digest_of(model, statement),
            __import__("hashlib").sha256(graph.model().SerializeToString()).hexdigest(),
        }
    assert len(digests) == 1


def test_a_shipped_model_s_layer_gives_the_residual_of_the_trace() -> None:
    from mamba_integer.engine import find_model
    from mamba_integer.model_file import read_model

    model = read_model(find_model("tinystories"))
    seen = []
    Reference(model, lambda _, site, v: seen.append(v) if site == "blk.0.resid" else None).logits([5, 7])
    graph, _ = of_tokens(model, [5, 7], 0, 16)
    assert (graph.outputs["output"] == np.stack(seen)).all()


@pytest.mark.parametrize("field", [{"scan": "literal"}, {"rotation": True}])
def test_models_of_other_arithmetic_are_refused_by_name(field: dict[str, Any]) -> None:
    model = small(0, **field)
    with pytest.raises(ArgumentError, match=next(iter(field))):
        whole(model, np.array([0]))


def test_the_float_baseline_is_that_of_training() -> None:
    import torch

    from mamba_integer.nn.model import FloatBlock, Positions

    config = report.config((16, 4, 5))
    weights = random_weights(config, 1)
    r = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    module = FloatBlock(config)
    with torch.no_grad():
        for name, w in weights.items():
            getattr(module, name).copy_(torch.from_numpy(w))
        wanted = module(torch.from_numpy(r)[None], Positions(torch.zeros(1, 5, dtype=torch.bool)))[0].numpy()
    (out,) = ort.InferenceSession(float_block(config, weights, 5).SerializeToString()).run(None, {"r": r})
    assert np.abs(out - wanted).max() < 1e-4


# ---- one witness and no other ----------------------------------------------------------------------------------------


def test_every_changed_witness_is_refused() -> None:
    """Each number that the prover supplies, one at a time, by several amounts: no changed one passes."""
    model = small(7, d_model=4, n_layers=1, n_heads=1, head_dim=2, d_state=2, norm_mantissa=8)
    graph = block(model, 0, Stream(7, 5).integers(-3000, 3000, (2, 4)))
    opened = session(graph)
    assert accepted(graph, graph.inputs, opened)
    changed = 0
    for name, value in graph.inputs.items():
        if name == "r":
            continue
        for at in range(value.size):
            for amount in (1, -1, 1 << graph.table_bits):
                other = value.copy()
                other.reshape(-1)[at] += amount
                assert not accepted(graph, {**graph.inputs, name: other}, opened), (name, at, amount)
                changed += 1
    assert changed > 1000


def test_a_quotient_off_by_one_with_its_remainder_to_match_is_refused() -> None:
    """x = 2^s·q + r also holds with q − 1 and r + 2^s, which a division that allows |r| < 2^s would accept."""
    for amount in (1, -1):
        graph = Graph(15)
        x = graph.input("x", np.array([1000, -1000, 7]), -(1 << 20), 1 << 20)
        exact = ar.rshift(x.value, 4)
        q = graph.clamped([(graph.scale(4), x)], graph.scale(4) << 3, 4, (-70000, 70000), (-70000, 70000), exact)
        graph.output("q", q)
        graph.finish()
        assert (run(graph)["q"] == exact).all()
        assert accepted(graph, graph.inputs)
        assert not accepted(graph, {**graph.inputs, q.name: exact + amount})


def test_a_saturation_that_is_none_is_refused() -> None:
    graph = Graph(15)
    x = graph.input("x", np.array([100, -300, 500]), -1000, 1000)
    y = graph.clamped([(1, x)], 0, 0, (-1000, 1000), (-127, 127), x.value)
    graph.output("y", y)
    graph.finish()
    assert run(graph)["y"].tolist() == [100, -127, 127]
    over = next(name for name, value in graph.inputs.items() if name.startswith("w") and value.tolist() == [0, 0, 373])
    for slack in ([1, 0, 373], [0, 0, 374], [0, 0, 372], [0, 1, 373], [-1, 0, 373]):
        assert not accepted(graph, {**graph.inputs, over: np.array(slack)}), slack


def test_a_width_below_the_table_s_admits_no_fraction() -> None:
    """2^14·b < 2^15 alone would let b be 1/2^14 in a field; the check of b itself is what forbids it."""
    graph = Graph(15)
    bit = graph.witness(np.array([1]), 0, 1)
    graph.below(bit, 1)
    graph.output("bit", bit)
    graph.finish()
    for value in (0, 1):
        assert accepted(graph, {**graph.inputs, bit.name: np.array([value])})
    for value in (2, -1, 1 << 15):
        assert not accepted(graph, {**graph.inputs, bit.name: np.array([value])})
    limbs = run(graph)["limbs"].tolist()
    assert 1 << 14 in limbs
    assert 1 in limbs


@pytest.mark.parametrize("bits", [1, 7, 15, 16, 24, 31])
def test_below_is_exact_at_every_width(bits: int) -> None:
    def graph(value: int) -> Graph:
        g = Graph(15)
        x = g.input("x", np.array([value]), 0, (1 << bits) - 1)
        g.below(x, bits)
        return g

    for value in (0, 1, (1 << bits) - 1):
        graph(value).finish()
    for value in (-1, 1 << bits):
        with pytest.raises(AssertionError, match="limb"):
            graph(value).finish()


def test_a_constant_that_float32_does_not_hold_is_made_of_two() -> None:
    assert survives(np.array([EXACT, -EXACT, 3 << 40]))
    assert not survives(np.array([EXACT + 1]))
    graph = Graph(15)
    x = graph.input("x", np.array([3, -5]), -8, 8)
    graph.output("y", graph.sum_of([(x, (1 << 30) + 1), (x, 1)], 12345678901))
    with pytest.raises(ArgumentError, match="float32"):
        graph.constant(np.array([EXACT + 1]))
    graph.finish()
    assert (run(graph)["y"] == x.value * ((1 << 30) + 2) + 12345678901).all()
    for initializer in graph.model().graph.initializer:
        assert survives(onnx.numpy_helper.to_array(initializer)), initializer.name


# ---- EZKL itself -----------------------------------------------------------------------------------------------------


def tiny() -> IntegerModel:
    return small(11, k=8, d_model=2, n_layers=1, n_heads=1, head_dim=2, d_state=2, norm_mantissa=8, weights="int8")


def test_a_proof_and_its_tampering(tmp_path: Path) -> None:
    """A whole model's step, really proven: the verdict is valid, and not for another output, check, circuit, proof or model."""
    model = tiny()
    graph, about = of_tokens(model, [3], None, 10)
    statement = ezkl.export(graph, tmp_path, **about)
    ezkl.prove(tmp_path)
    values = ezkl.read_settings(tmp_path)
    assert values["required_lookups"] == []
    assert values["required_range_checks"] == []
    digest = digest_of(model, statement)
    assert ezkl.verify(tmp_path, digest).valid
    assert statement["output"] == Reference(model).logits([3]).tolist()

    def verdict(file: str, change: Any) -> ezkl.Verdict:
        path = tmp_path / file
        kept = path.read_bytes()
        values = json.loads(kept)
        change(values)
        path.write_text(json.dumps(values))
        try:
            return ezkl.verify(tmp_path, digest)
        finally:
            path.write_bytes(kept)

    def output(s: dict[str, Any]) -> None:
        s["output"][0][0] += 1

    def both(p: dict[str, Any]) -> None:
        felt = bytearray(bytes.fromhex(p["instances"][0][1]))
        felt[0] ^= 1
        p["instances"][0][1] = felt.hex()

    def bit(p: dict[str, Any]) -> None:
        p["proof"][100] ^= 1
        p["hex_proof"] = "0x" + bytes(p["proof"]).hex()

    def check(p: dict[str, Any]) -> None:
        p["instances"][0][-4] = p["instances"][0][-1]

    assert "other inputs or outputs" in verdict(ezkl.STATEMENT, output).reason
    assert "other inputs or outputs" in verdict(ezkl.PROOF, both).reason
    assert "checks" in verdict(ezkl.PROOF, check).reason
    assert "refuses" in verdict(ezkl.PROOF, bit).reason
    assert not ezkl.verify(tmp_path, "0" * 64).valid

    # A statement and a public number that agree with each other: only the proof itself is against it.
    kept = (tmp_path / ezkl.STATEMENT).read_bytes()
    moved = json.loads(kept)
    moved["output"] = [[ezkl.integer("01" + 31 * "00"), *moved["output"][0][1:]]]
    (tmp_path / ezkl.STATEMENT).write_text(json.dumps(moved))

    def lie(p: dict[str, Any]) -> None:
        p["instances"][0][1] = "01" + 31 * "00"

    assert "refuses" in verdict(ezkl.PROOF, lie).reason
    (tmp_path / ezkl.STATEMENT).write_bytes(kept)

    with pytest.raises(ArgumentError, match="statement is of the model"):
        digest_of(small(12), statement)
    (tmp_path / ezkl.PROOF).write_text("[]")
    with pytest.raises(ProofError, match="not a proof"):
        ezkl.verify(tmp_path)


def test_ezkl_lays_out_what_it_computes_with_large_constants_right(tmp_path: Path) -> None:
    """Through EZKL's importer: a constant beyond 2^24 put in plainly comes out rounded, and through the pool exact."""
    tool = import_module("ezkl")
    large = (1 << 30) + 1
    graph = Graph(8)
    x = graph.input("x", np.array([3, -5]), -8, 8)
    graph.output("y", graph.mul(x, large))
    graph.finish()
    ezkl.export(graph, tmp_path / "pool")
    onnx_model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Mul", ["x", "c"], ["y"])],
            "plain",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [2])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2])],
            [onnx.numpy_helper.from_array(np.array([large, large]), "c")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / ezkl.ONNX).write_bytes(onnx_model.SerializeToString())
    (tmp_path / "plain" / ezkl.INPUT).write_text(json.dumps({"input_data": [[3, -5]]}))
    found = {}
    for name in ("pool", "plain"):
        folder = tmp_path / name
        ezkl.settings(folder, 10)
        ezkl.step(folder, "compile")
        ezkl.step(folder, "witness")
        outputs = json.loads((folder / ezkl.WITNESS).read_bytes())["outputs"]
        found[name] = [ezkl.integer(felt) for felt in outputs[0]]
    assert tool.__version__ if hasattr(tool, "__version__") else True
    assert found["pool"] == [3 * large, -5 * large]
    assert found["plain"] != found["pool"]


def test_missing_packages_and_bad_shapes_are_one_line() -> None:
    with pytest.raises(ArgumentError, match=r"pip install 'mamba-integer\[ezkl\]'"):
        available("a_package_that_is_not_there")
    for text in ("1,2", "a,b,c", "0,4,4", "5,4,4,4", "-1,2,3"):
        with pytest.raises(ArgumentError, match="shape"):
            report.parse(text)
    with pytest.raises(ArgumentError, match="even"):
        report.config((5, 4, 4))
    with pytest.raises(ArgumentError, match="table bits"):
        Graph(17)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mamba_integer.cli import main
    from mamba_integer.tokenizer import Tokenizer

    Tokenizer.train("a", vocab_size=257).save(tmp_path / "tokenizer")
    model = small(2, n_layers=1, vocab_size=257, d_model=4)
    path = tmp_path / "m.gguf"
    write_model(path, random_model(model.config, 2, tokenizer=(tmp_path / "tokenizer").read_bytes()))
    folder = tmp_path / "out"
    arguments = ["circuit", "export", "--model", str(path), "--prompt", "b"]
    assert main([*arguments, "--layer", "0", "-o", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 2
    assert (folder / ezkl.ONNX).is_file()
    assert main([*arguments, "--layer", "7", "-o", str(folder)]) == 2
    assert "no layer 7" in capsys.readouterr().err
    assert main([*arguments, "--table-bits", "20", "-o", str(folder)]) == 2
    assert main(["circuit", "report", "--shape", "x"]) == 2
    assert main(["circuit", "verify", str(tmp_path / "nothing"), "--model", str(path)]) == 2
    assert main(["circuit"]) == 2
    capsys.readouterr()
