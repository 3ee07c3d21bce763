"""The second verifier (tests/verifier), written from spec/PROTOCOL.md alone, against the prover: it accepts what is honest and nothing else."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mamba_integer.cli import main
from mamba_integer.config import ModelConfig
from mamba_integer.model_file import serialize
from mamba_integer.random_model import random_model
from tests.models import ROOT, TINY_TOKENIZER, tiny_model_bytes
from tests.verifier import VerificationError, generation, model_circuit, whir
from tests.verifier.__main__ import main as second_main
from tests.verifier.circuit import low_index, prefix_sums
from tests.verifier.codec import Reader
from tests.verifier.field import ONE, ZERO, Ext, P, eq_table
from tests.verifier.generation import Body, read_body, verify
from tests.verifier.kernels import Lag
from tests.verifier.registration import verify_registration
from tests.verifier.segment import SegmentProof
from tests.verifier.statement import canonical, read_card, read_container
from tests.verifier.transcript import Transcript

# Shapes that differ in what a circuit depends on: one block and several, with and without padding, both activations, both norms.
SHAPES: dict[str, dict[str, Any]] = {
    "squareplus": {
        "d_model": 10,
        "n_layers": 1,
        "n_heads": 5,
        "head_dim": 3,
        "d_state": 6,
        "activation": "squareplus",
        "gate": "squareplus",
    },
    "no mantissa": {"d_model": 33, "n_layers": 1, "n_heads": 2, "head_dim": 16, "d_state": 2, "norm_mantissa": 0},
}
SAMPLINGS: dict[str, list[str]] = {
    "greedy": ["--temperature", "0", "--max-tokens", "5"],
    "temperature": ["--temperature", "0.9", "--top-k", "0", "--max-tokens", "5"],
    "top_k, three segments": [
        "--top-k",
        "5",
        "--max-tokens",
        "18",
        "--segment-steps",
        "8",
        "--seed",
        "12345678901234567890",
    ],
    "until the end token": ["--top-k", "5", "--max-tokens", "18", "--segment-steps", "8", "--seed", "2"],
}


def _commit(path: Path, data: bytes) -> Path:
    path.with_suffix(".gguf").write_bytes(data)
    assert main(["commit-model", str(path.with_suffix(".gguf")), "-o", str(path.with_suffix(".card"))]) == 0
    return path


def _prove(path: Path, name: str, arguments: list[str]) -> bytes:
    target = path.with_name(f"{name}.proof")
    if not target.exists():
        model = str(path.with_suffix(".gguf"))
        assert main(["prove", "--model", model, "--prompt", "Once", "-o", str(target), *arguments]) == 0
    return target.read_bytes()


def _commitment(path: Path) -> str:
    return read_card(path.with_suffix(".card").read_bytes()).commitment.hex()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model of other tests, with its card and registration."""
    return _commit(tmp_path_factory.mktemp("tiny") / "tiny", tiny_model_bytes())


@pytest.fixture(scope="module")
def proof(tiny: Path) -> bytes:
    """A proof in three segments, so that states come in and go out."""
    return _prove(tiny, "story", SAMPLINGS["top_k, three segments"])


# -- what is honest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLINGS)
def test_accepts_every_way_of_sampling(tiny: Path, name: str) -> None:
    report = verify(_prove(tiny, name, SAMPLINGS[name]), _commitment(tiny))
    assert report.soundness_bits > 100
    assert report.statement.finish == ("end" if name == "until the end token" else "limit")


@pytest.mark.parametrize("name", SHAPES)
def test_accepts_other_shapes(tmp_path: Path, name: str) -> None:
    config = ModelConfig(vocab_size=TINY_TOKENIZER.vocab_size, context_length=64, **SHAPES[name])
    model = dataclasses.replace(
        random_model(config, 7, tokenizer=TINY_TOKENIZER.to_bytes()), embed_mul=30, logit_shift=18
    )
    path = _commit(tmp_path / "model", serialize(model))
    verify_registration(path.with_suffix(".registration").read_bytes(), _commitment(path))
    for sampling in ("greedy", "top_k, three segments"):
        verify(_prove(path, sampling, SAMPLINGS[sampling]), _commitment(path))


def test_accepts_the_shipped_models_registration() -> None:
    path = ROOT / "models/tinystories"
    card = verify_registration(path.with_suffix(".registration").read_bytes(), _commitment(path))
    assert card.name == "tinystories"


def test_command(tiny: Path, proof: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = str(tiny.with_suffix(".card"))
    (tmp_path / "story.proof").write_bytes(proof)
    assert second_main([str(tmp_path / "story.proof"), "--model", card]) == 0
    assert second_main([str(tiny.with_suffix(".registration")), "--model", _commitment(tiny)]) == 0
    assert capsys.readouterr().out.count("accepted") == 2
    assert second_main([str(tmp_path / "story.proof"), "--model", "0" * 64]) == 1
    assert "rejected: the proof is about another model" in capsys.readouterr().out
    assert second_main([str(tmp_path / "none.proof"), "--model", card]) == 2


# -- statements and files -----------------------------------------------------------------------------------------


def _joined(parts: list[bytes], magic: bytes = b"MI-PROOF") -> bytes:
    return (
        magic
        + (1).to_bytes(4, "little")
        + b"".join(len(part).to_bytes(8, "little") for part in parts)
        + b"".join(parts)
    )


def _with_statement(data: bytes, **changes: Any) -> bytes:
    statement, card, body = read_container(data, b"MI-PROOF", 3)
    return _joined([canonical(json.loads(statement) | changes), card, body])


def _statement(data: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(read_container(data, b"MI-PROOF", 3)[0])
    return value


def _decoded(tokens: list[int]) -> dict[str, Any]:
    return {"tokens": tokens, "text": TINY_TOKENIZER.decode(tokens)}


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    # Found before the cryptography:
    "text": (lambda s: {"text": s["text"] + " "}, "another text"),
    "prompt": (lambda s: {"prompt": "Twice"}, "the prompt has other tokens"),
    "unknown token": (lambda s: {"tokens": [*s["tokens"][:-1], 320]}, "tokens is not an integer"),
    "true for 1": (lambda s: {"tokens": [*s["tokens"][:-1], True]}, "tokens is not an integer"),
    "negative token": (lambda s: {"tokens": [*s["tokens"][:-1], -1]}, "tokens is not an integer"),
    "end in the middle": (lambda s: {"tokens": [319, *s["tokens"][1:]]}, "before the end"),
    "end": (lambda s: {"finish": "end"}, "finish does not fit"),
    "unsaid end": (lambda s: {"tokens": [*s["tokens"][:-1], 319]}, "finish does not fit"),
    "other finish": (lambda s: {"finish": "stop"}, "finish is neither"),
    "nothing chosen": (lambda s: {"tokens": [], "text": ""}, "nothing was chosen"),
    "no start": (lambda s: {"prompt_tokens": s["prompt_tokens"][1:]}, "does not begin"),
    "too few segments": (lambda s: {"segments": s["segments"][:-1]}, "do not cover"),
    "too many segments": (lambda s: {"segments": [*s["segments"], 3]}, "do not cover"),
    "65 segments": (lambda s: {"segments": [3] * 65}, "too many segments"),
    "short segment": (lambda s: {"segments": [2, *s["segments"]]}, "segments is not"),
    "commitment": (lambda s: {"commitment": "0" * 64}, "another model than the card"),
    "top_p": (lambda s: {"sampling": s["sampling"] | {"top_p": 65536}}, "wrong keys"),
    "version": (lambda s: {"protocol": 2}, "another version"),
    # Found by it:
    "other token": (lambda s: _decoded([*s["tokens"][:-1], (s["tokens"][-1] + 1) % 200]), "segment 0"),
    "fewer tokens": (lambda s: _decoded(s["tokens"][:-1]), "segment 0"),
    "other seed": (lambda s: {"sampling": s["sampling"] | {"seed": 1}}, "segment 0"),
    "other temperature": (lambda s: {"sampling": s["sampling"] | {"temperature": 65536}}, "segment 0"),
    "other top_k": (lambda s: {"sampling": s["sampling"] | {"top_k": 6}}, "segment 0"),
    "greedy": (lambda s: {"sampling": s["sampling"] | {"temperature": 0}}, "segment 0|wrong"),
    "other segments": (lambda s: {"segments": [3, 4]}, "number of segments"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_refuses_changed_statements(tiny: Path, proof: bytes, name: str) -> None:
    change, reason = CHANGES[name]
    with pytest.raises(VerificationError, match=reason):
        verify(_with_statement(proof, **change(_statement(proof))), _commitment(tiny))


def test_a_statement_is_bound_even_where_the_circuit_is_the_same(tiny: Path) -> None:
    """Under greedy choice the seed decides nothing; the transcript starts with the statement all the same."""
    data = _prove(tiny, "greedy", SAMPLINGS["greedy"])
    sampling = _statement(data)["sampling"]
    with pytest.raises(VerificationError, match="segment 0"):
        verify(_with_statement(data, sampling=sampling | {"seed": 99}), _commitment(tiny))


def test_refuses_other_encodings(tiny: Path, proof: bytes) -> None:
    statement, card, body = read_container(proof, b"MI-PROOF", 3)
    loose = json.dumps(json.loads(statement)).encode()
    doubled = statement[:-1] + b',"spec":1}'
    for parts, reason in (
        ([loose, card, body], "canonical"),
        ([doubled, card, body], "canonical"),
        ([statement + b"\n", card, body], "canonical"),
        ([b"\xff" + statement, card, body], "not JSON"),
        ([b"[" * 100_000, card, body], "not JSON"),
        ([statement, card + b" ", body], "canonical"),
        ([statement, card, body + b"\0"], "trailing"),
        ([statement, card, body[:-1]], "too early|longer"),
        ([statement, card], "another length|not a proof"),
    ):
        with pytest.raises(VerificationError, match=reason):
            verify(_joined(parts), _commitment(tiny))
    for data, reason in ((proof + b"\0", "length"), (b"MI-REGIS" + proof[8:], "not a proof"), (b"", "not a proof"),
                         (proof[:8] + b"\2" + proof[9:], "version")):  # fmt: skip
        with pytest.raises(VerificationError, match=reason):
            verify(data, _commitment(tiny))


@pytest.mark.parametrize(
    ("key", "value"),
    [("norm_mantissa", 4), ("d_state", 3), ("k", [[7, 8, 8], [8, 8, 8]]), ("embed_mul", 0), ("gate", "relu"), ("d_model", 4097), ("in_proj_shift", [25, 0]),
     ("n_layers", 3), ("rotation", 0)],
)  # fmt: skip
def test_refuses_cards_beyond_the_limits(tiny: Path, key: str, value: object) -> None:
    card = json.loads(tiny.with_suffix(".card").read_bytes())
    card["shape"][key] = value
    with pytest.raises(VerificationError, match="shape"):
        read_card(canonical(card))


def test_refuses_another_card(tiny: Path, proof: bytes) -> None:
    """A card with another root is another model; and under its own name the proof does not fit."""
    statement, card, body = read_container(proof, b"MI-PROOF", 3)
    other = canonical(json.loads(card) | {"root": "11" * 32})
    commitment = read_card(other).commitment.hex()
    told = canonical(json.loads(statement) | {"commitment": commitment})
    with pytest.raises(VerificationError, match="than the one named"):
        verify(_joined([statement, other, body]), _commitment(tiny))
    with pytest.raises(VerificationError, match="than the card"):
        verify(_joined([statement, other, body]), commitment)
    with pytest.raises(VerificationError, match="segment 0"):
        verify(_joined([told, other, body]), commitment)


# -- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_refuses_changed_bytes(tiny: Path, proof: bytes, seed: int) -> None:
    rng = random.Random(seed)
    start = len(proof) - len(read_container(proof, b"MI-PROOF", 3)[2])
    at = rng.randrange(start, len(proof))
    changed = bytearray(proof)
    changed[at] ^= 1 << rng.randrange(8)
    with pytest.raises(VerificationError):
        verify(bytes(changed), _commitment(tiny))


def _elements(node: object, found: list[tuple[list[Any], int]]) -> list[tuple[list[Any], int]]:
    """Every place of a field element in a list of the parsed proof."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            if isinstance(child, (Ext, int)):
                if isinstance(node, list):
                    found.append((node, i))
            else:
                _elements(child, found)
    return found


def _mutable(node: Any) -> Any:
    """The parsed proof with plain tuples of field elements as lists."""
    if isinstance(node, list):
        return [_mutable(child) for child in node]
    if isinstance(node, tuple):
        if hasattr(node, "_fields"):
            return type(node)(*(_mutable(child) for child in node))
        return [_mutable(child) for child in node]
    return node


GROUPS: dict[str, tuple[Callable[[SegmentProof], object], str]] = {
    "lookups": (lambda s: s.lookups, "segment 1: layer fails|segment 1: the main sumcheck"),
    "main sumcheck": (lambda s: s.main.round_polys, "segment 1: the main sumcheck ends"),
    "first values": (lambda s: s.first_values, "segment 1: the main sumcheck ends"),
    "values of sums": (lambda s: s.sum_values, "segment 1: the main sumcheck ends"),
    "second sumcheck": (lambda s: s.second.round_polys, "segment 1: the second sumcheck ends"),
    "second values": (lambda s: s.second_values, "segment 1: the second sumcheck ends"),
    "opened values": (lambda s: [list(e) for e in s.trace_opening.evaluations], "segment 1: "),
}


@pytest.fixture
def no_grinding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grinding and Merkle paths refuse nearly everything first; without them, what is behind must."""

    def absorb_only(self: Transcript, bits: int, witness: int) -> None:
        self.check_witness(bits, witness)

    monkeypatch.setattr(Transcript, "require_witness", absorb_only)
    monkeypatch.setattr(whir, "verify_multiproof", lambda *arguments: None)


def _verify_body(data: bytes, commitment: str, body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "read_body", lambda _: body)
    verify(data, commitment)


@pytest.mark.usefixtures("no_grinding")
@pytest.mark.parametrize("name", GROUPS)
def test_every_message_of_a_segment_matters(
    tiny: Path, proof: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, reason = GROUPS[name]
    rng = random.Random(name)
    for _ in range(3):
        body: Body = _mutable(read_body(read_container(proof, b"MI-PROOF", 3)[2]))
        places = _elements(choose(body.segments[1]), [])
        if name == "opened values":
            places = _elements([e.current for e in body.segments[1].trace_opening.evaluations], [])
        values, i = rng.choice(places)
        values[i] = values[i] + 1
        with pytest.raises(VerificationError, match=reason):
            _verify_body(proof, _commitment(tiny), body, monkeypatch)


@pytest.mark.usefixtures("no_grinding")
def test_every_first_and_second_value_matters(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value that a segment sends is in an equation with a challenge: a false one is found at once, without the openings."""
    data = _prove(tiny, "temperature", SAMPLINGS["temperature"])
    content = read_container(data, b"MI-PROOF", 3)[2]
    count = len(read_body(content).segments[0].first_values)
    for i in random.Random(1).sample(range(count), 12):
        body = read_body(content)
        body.segments[0].first_values[i] += ONE
        with pytest.raises(VerificationError, match="the main sumcheck ends"):
            _verify_body(data, _commitment(tiny), body, monkeypatch)


@pytest.mark.usefixtures("no_grinding")
def test_openings_of_the_tail_matter(tiny: Path, proof: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    content = read_container(proof, b"MI-PROOF", 3)[2]

    def attempt(change: Callable[[Body], Body | None]) -> None:
        body = read_body(content)
        changed = change(body)
        with pytest.raises(VerificationError):
            _verify_body(proof, _commitment(tiny), body if changed is None else changed, monkeypatch)

    def bump(values: list[Ext]) -> None:
        values[0] += ONE

    attempt(lambda b: bump(b.model_opening.evaluations[2].current))
    attempt(lambda b: bump(b.states_opening.evaluations[1].current) if b.states_opening else None)
    attempt(lambda b: bump(b.model_opening.final_poly))
    attempt(lambda b: b._replace(states_root=bytes(32)))
    attempt(lambda b: b._replace(states_root=None))
    attempt(lambda b: b._replace(states_opening=None))
    attempt(lambda b: b._replace(states_opening=b.model_opening))
    attempt(lambda b: b._replace(segments=b.segments[:2]))
    attempt(lambda b: b._replace(segments=[b.segments[1], b.segments[0], b.segments[2]]))
    attempt(
        lambda b: b._replace(segments=[b.segments[0]._replace(trace_root=b.segments[1].trace_root), *b.segments[1:]])
    )


def test_a_segment_of_another_proof_does_not_fit(tiny: Path, proof: bytes) -> None:
    """Same statement but for the seed: segments are bound to their own head."""
    other = _prove(tiny, "other", [*SAMPLINGS["top_k, three segments"][:-1], "3"])
    statement, card, _ = read_container(proof, b"MI-PROOF", 3)
    with pytest.raises(VerificationError, match="segment 0"):
        verify(_joined([statement, card, read_container(other, b"MI-PROOF", 3)[2]]), _commitment(tiny))


@pytest.mark.parametrize("change", ["constraint", "sign", "lookup", "range", "link", "carry", "token"])
def test_a_proof_is_of_one_circuit(tiny: Path, proof: bytes, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit that is another in one place refuses the proof: what is verified depends on all of it."""
    build = model_circuit.build

    def altered(shape: model_circuit.Shape, facts: model_circuit.SegmentFacts) -> model_circuit.Circuit:
        if change == "token":
            facts = dataclasses.replace(facts, fed=(*facts.fed[:2], 7, *facts.fed[3:]))
        circuit = build(shape, facts)
        table = circuit.tables[-1]
        if change == "constraint":
            table.constraints.pop()
        elif change == "sign":
            last = table.constraints[-1]
            table.constraints[-1] = last._replace(expr=-last.expr)
        elif change == "lookup":
            table.lookups[-1] = table.lookups[-1]._replace(selector=())
        elif change == "range":
            circuit.ranges[-1] -= 1
        else:
            found = [
                i for i, s in enumerate(circuit.sums) if (s.link if change == "link" else s.carries and not s.link)
            ]
            for i in found[:1]:
                circuit.sums[i] = dataclasses.replace(circuit.sums[i], carries=())
        return circuit

    monkeypatch.setattr(generation, "build", altered)
    with pytest.raises(VerificationError):
        verify(proof, _commitment(tiny))


# -- registrations ------------------------------------------------------------------------------------------------


def test_registrations(tiny: Path) -> None:
    data = tiny.with_suffix(".registration").read_bytes()
    assert verify_registration(data, _commitment(tiny)).data == tiny.with_suffix(".card").read_bytes()
    with pytest.raises(VerificationError, match="than the one named"):
        verify_registration(data, "0" * 64)
    card, body = read_container(data, b"MI-REGIS", 2)
    other = canonical(json.loads(card) | {"name": "another"})
    with pytest.raises(VerificationError):
        verify_registration(_joined([other, body], b"MI-REGIS"), read_card(other).commitment.hex())
    rng = random.Random(3)
    for _ in range(15):
        changed = bytearray(data)
        changed[rng.randrange(len(data) - len(body), len(data))] ^= 1 << rng.randrange(8)
        with pytest.raises(VerificationError):
            verify_registration(bytes(changed), _commitment(tiny))


# -- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["johnson", "unique"])
def test_whir_parameters_are_those_of_p3_whir(regime: whir.Regime) -> None:
    """The fixture is what WhirConfig::new of p3-whir 0.8.0 derives for security_level 112 and pow_bits 16."""
    cases = json.loads((ROOT / "tests/verifier/fixtures/whir_configs.json").read_text())[regime]
    for case in cases:
        if "error" in case:
            with pytest.raises(ValueError, match="fold|grinding|subgroup"):
                whir.derive_config(case["n"], regime)
            continue
        config = whir.derive_config(case["n"], regime)
        rows = [[r.num_variables, r.log_domain, r.num_queries, r.pow_bits, r.ood_samples, r.log_inv_rate, r.folding_pow_bits]
                for r in (*config.rounds, config.final)]  # fmt: skip
        assert rows == [row[:7] for row in (*case["rounds"], case["final"])]
        assert (config.ood_samples, config.starting_folding_pow_bits, config.final_sumcheck_rounds) == (
            case["ood"], case["start_pow"], case["final_rounds"])  # fmt: skip


def _point(count: int) -> list[Ext]:
    rng = random.Random(count)
    return [Ext([rng.randrange(P) for _ in range(5)]) for _ in range(count)]


@pytest.mark.parametrize("bound", [0, 1, 5, 16, 31, 32])
def test_prefix_sums(bound: int) -> None:
    point = _point(5)
    table = eq_table(point)
    assert prefix_sums(point, bound) == (
        sum(table[:bound], ZERO),
        sum((e * i for i, e in enumerate(table[:bound])), ZERO),
    )
    assert low_index(point) == sum((e * i for i, e in enumerate(table)), ZERO)


def test_lag_is_a_shift_on_the_hypercube() -> None:
    for s in range(8):
        for x in range(8):
            at = [[ONE if n >> i & 1 else ZERO for i in (2, 1, 0)] for n in (s, x)]
            assert Lag(3).value(at[0], at[1]) == (ONE if s - 3 == x else ZERO)


def test_philox() -> None:
    """The vector of ARITHMETIC.md, section 11."""
    assert model_circuit.random_word(0, 0) == 1713891541


def test_axes() -> None:
    """The examples of section 5.1."""
    assert [(a.blocks, a.log) for a in map(model_circuit.Axis.of, (192, 12, 5))] == [(3, 6), (3, 2), (5, 0)]


def test_reader_is_strict() -> None:
    for data in (b"\x80\x00", b"\xff" * 10, b"\x80"):
        with pytest.raises(VerificationError):
            Reader(data).varint()
    with pytest.raises(VerificationError, match="canonical"):
        Reader(P.to_bytes(4, "little")).base()
