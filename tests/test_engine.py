"""The engine through Python: bit for bit the reference, logit by logit and intermediate by intermediate; generation; what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_integer import _native
from mamba_integer.engine import PART, Model, StopStrings, feed_many, find_model, log_softmax
from mamba_integer.errors import ArgumentError, ModelFormatError, TokenizerError
from mamba_integer.evaluate import document_nats, evaluate
from mamba_integer.model_file import read_model, serialize
from mamba_integer.random_model import Stream, random_config, random_model
from mamba_integer.reference import Reference
from mamba_integer.sampling import Sampling
from mamba_integer.tokenizer import documents, read_text
from tests.models import TINY_CONFIG, TINY_TOKENIZER, VALID, shipped_model, tiny_model, tiny_model_bytes

CONFIGS = 200
TRACED = 40
REAL_TOKENS = 2048

Sites = list[tuple[int, str, npt.NDArray[np.int32]]]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return Model.from_bytes(tiny_model_bytes())


# ---- the same bits as the reference --------------------------------------------------------------------------------------------------------------


def fixed_modes(seed: int) -> dict[str, Any]:
    """Some seeds are given a mode, so that each is met however the random choices fall."""
    modes: list[dict[str, Any]] = [
        {"scan": "literal", "weights": "ternary"},
        {"scan": "convex", "weights": "ternary", "rotation": True},
        {"scan": "literal", "norm_mantissa": 0, "norm_scale": "scalar"},
        {"activation": "squareplus", "gate": "squareplus"},
        {"activation": "silu", "gate": "squareplus", "rotation": True},
        {"d_model": 1, "n_heads": 1, "head_dim": 1, "d_state": 2, "vocab_size": 1},
        {"d_state": 64, "n_layers": 1},
        {"d_model": 257, "head_dim": 3},
    ]
    return modes[seed] if seed < len(modes) else {}


@pytest.mark.parametrize("group", range(10))
def test_random_models(group: int) -> None:
    for seed in range(group, CONFIGS, 10):
        config = random_config(seed, **fixed_modes(seed))
        weights = random_model(config, seed, hostile=seed % 3 == 0)
        if seed % 4 == 0:  # the slowest decay, on every head
            tensors = dict(weights.tensors)
            for i in range(config.n_layers):
                tensors[f"blk.{i}.scan.k"] = np.full(config.n_heads, 15, np.int8)
            weights = dataclasses.replace(weights, tensors=tensors)
        tokens = Stream(seed, 9).integers(0, config.vocab_size - 1, (1 + seed % 24,)).tolist()
        model = Model.from_bytes(serialize(weights))
        assert model.digest == weights.digest
        expected: Sites = []
        reference = Reference(weights, note_in(expected)).logits(tokens)
        assert np.array_equal(model.logits(tokens), reference), config
        if seed < TRACED:
            compare_traces(model, tokens, expected)


def note_in(sites: Sites) -> Callable[[int, str, npt.NDArray[np.int32]], None]:
    return lambda position, site, values: sites.append((position, site, values))


def compare_traces(model: Model, tokens: list[int], expected: Sites) -> None:
    sites: Sites = []
    model.session().feed_traced(tokens, note_in(sites))
    assert [(p, s) for p, s, _ in sites] == [(p, s) for p, s, _ in expected]
    for (position, site, ours), (_, _, theirs) in zip(sites, expected, strict=True):
        assert np.array_equal(ours, theirs.reshape(-1)), f"{site} at position {position}"


def test_the_shipped_model_on_real_text() -> None:
    path = shipped_model()
    model, weights = Model.load(path), read_model(path)
    assert model.digest == weights.digest
    tokens: list[int] = []
    for text in documents(read_text(VALID)):
        tokens += model.encode(text)
        if len(tokens) >= REAL_TOKENS:
            break
    tokens = tokens[:REAL_TOKENS]
    assert len(tokens) == REAL_TOKENS
    assert np.array_equal(model.logits(tokens), Reference(weights).logits(tokens))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=52429, seed=1),
        Sampling(temperature=65536, top_k=5, seed=2),
        Sampling(temperature=98304, top_p=58982, seed=3),
        Sampling(temperature=1 << 22, top_k=17, top_p=30000, seed=(1 << 64) - 1),
        Sampling(temperature=1, seed=4),
    ],
    ids=str,
)
def test_sampling_is_the_references(sampling: Sampling) -> None:
    for seed in range(6):
        weights = random_model(random_config(seed, vocab_size=300), seed)
        prompt = [1 + seed, 2]
        expected = list(Reference(weights).generate(prompt, 24, sampling))
        session = Model.from_bytes(serialize(weights)).session()
        session.feed(prompt)
        tokens = []
        for step in range(24):
            tokens.append(session.sample(sampling, step))
            session.feed_last(tokens[-1:])
        assert tokens == expected


# ---- sessions ------------------------------------------------------------------------------------------------------------------------------------


def test_feeding_in_parts_is_feeding_at_once(tiny: Model) -> None:
    tokens = TINY_TOKENIZER.encode("The sun was warm and the bird sang.")
    whole = tiny.logits(tokens)
    assert whole.dtype == np.int32
    assert whole.shape == (len(tokens), tiny.config.vocab_size)
    session = tiny.session()
    assert session.position == 0
    with pytest.raises(ArgumentError):
        session.logits()
    parts = [session.feed(tokens[:3]), session.feed([]), session.feed(tokens[3:7])]
    session.feed_last(tokens[7:])
    assert session.position == len(tokens)
    assert np.array_equal(np.concatenate(parts), whole[:7])
    assert np.array_equal(session.logits(), whole[-1])
    session.reset()
    assert session.position == 0
    assert np.array_equal(session.feed(tokens), whole)


def test_long_prompts_are_fed_in_parts(tiny: Model) -> None:
    tokens = tiny.encode("One day a big dog ran. " * PART)[: 2 * PART + 3]
    whole = tiny.logits(tokens)
    parts = list(tiny.session().feed_parts(tokens))
    assert [len(part) for part in parts] == [PART, PART, 3]
    assert np.array_equal(np.concatenate(parts), whole)
    assert list(tiny.session().feed_parts([])) == []
    generation = tiny.generate(tokens, max_tokens=1)
    generation.finish()
    assert generation.logits_digest == hashlib.sha256(whole.astype("<i4").tobytes()).hexdigest()


def test_many_sequences_at_once_are_as_each_alone(tiny: Model) -> None:
    texts = ["The sun was warm.", "a", "One day a big dog ran to the park with a red ball.", "Hi", "The cat sat."]
    prompts = [tiny.encode(text) for text in texts * 9]
    sessions = [tiny.session(threads=2 if i == 0 else 1) for i in range(len(prompts))]
    feed_many(sessions, prompts)
    for step in range(6):
        for session, prompt in zip(sessions, prompts, strict=True):
            assert session.position == len(prompt)
            assert np.array_equal(session.logits(), tiny.logits(prompt)[-1])
        chosen = [[session.sample(Sampling(), step)] for session in sessions]
        prompts = [[*prompt, *token] for prompt, token in zip(prompts, chosen, strict=True)]
        feed_many(sessions, chosen)
    feed_many([], [])


def test_what_feeding_many_refuses(tiny: Model) -> None:
    one, two = tiny.session(), tiny.session()
    stranger = Model.from_bytes(serialize(random_model(random_config(1, vocab_size=300), 1))).session()
    with pytest.raises(ArgumentError, match="different models"):
        feed_many([one, stranger], [[1], [1]])
    with pytest.raises(ArgumentError):
        feed_many([one, one], [[1], [1]])
    with pytest.raises(ArgumentError, match="tokens for"):
        feed_many([one, two], [[1]])
    with pytest.raises(ArgumentError, match="vocabulary"):
        feed_many([one, two], [[1], [tiny.config.vocab_size]])
    assert one.position == two.position == 0


def test_threads_change_no_bit(tiny: Model) -> None:
    tokens = tiny.encode("The sun was warm and the bird sang. " * 4)
    for threads in (1, 2, 3):
        assert np.array_equal(tiny.session(threads=threads).feed(tokens), tiny.logits(tokens))
        generation = tiny.generate("The", max_tokens=20, seed=3, threads=threads)
        generation.finish()
        assert generation.logits_digest == tiny_digest(tiny)
    for threads in (0, 257):
        with pytest.raises(ArgumentError, match="threads"):
            tiny.session(threads=threads)


def tiny_digest(tiny: Model) -> str:
    generation = tiny.generate("The", max_tokens=20, seed=3)
    generation.finish()
    return generation.logits_digest


def test_a_saved_state_continues_with_the_same_bits(tiny: Model) -> None:
    tokens = tiny.encode("One day a little girl went to the park.")
    whole = tiny.logits(tokens)
    session = tiny.session()
    empty = session.save()
    assert tiny.session(state=empty).position == 0
    for cut in (1, 7, len(tokens)):
        session.reset()
        session.feed_last(tokens[:cut])
        state = session.save()
        assert len(state) == len(empty)  # constant in the length of the text
        other = tiny.session(state=state)
        assert other.position == cut
        assert np.array_equal(other.logits(), whole[cut - 1])
        assert np.array_equal(other.feed(tokens[cut:]), whole[cut:])


def test_bad_states_are_refused(tiny: Model) -> None:
    session = tiny.session()
    session.feed_last([1, 2, 3])
    state = session.save()
    stranger = Model.from_bytes(serialize(random_model(random_config(1, vocab_size=300), 1)))
    with pytest.raises(ModelFormatError, match="another model"):
        stranger.session(state=state)
    for bad in (b"", state[:-1], state + b"\0", state[:100] + bytes([state[100] ^ 1]) + state[101:], b"x" * len(state)):
        with pytest.raises(ModelFormatError, match="state"):
            session.restore(bad)
    with pytest.raises(ModelFormatError, match="version 2"):
        session.restore(state[:8] + b"\2" + state[9:])
    assert session.save() == state


def test_a_refused_token_feeds_nothing(tiny: Model) -> None:
    session = tiny.session()
    for bad in (tiny.config.vocab_size, -1, 1 << 40, 1 << 80):
        with pytest.raises(ArgumentError, match="vocabulary"):
            session.feed([1, 2, bad])
        with pytest.raises(ArgumentError, match="vocabulary"):
            tiny.logits([bad])
    with pytest.raises(ArgumentError, match="integers"):
        session.feed([1.0])  # type: ignore[list-item]
    assert session.position == 0
    assert np.array_equal(session.feed(np.array([1, 2])), tiny.logits([1, 2]))  # type: ignore[arg-type]


def test_the_native_layer_refuses_too(tiny: Model) -> None:
    session = _native.Model.from_bytes(tiny_model_bytes()).session()
    with pytest.raises(ArgumentError):
        session.feed([tiny.config.vocab_size])
    with pytest.raises(ArgumentError):
        session.sample(0, 0, 65536, 0, 0)
    session.feed([1])
    for bad in ((1 << 22) + 1, 0, 65536), (1, 0, 0), (1, 0, 65537):
        with pytest.raises(ArgumentError):
            session.sample(*bad, 0, 0)
    assert session.position == 1


def test_an_error_in_a_trace_is_passed_on(tiny: Model) -> None:
    def stop(position: int, site: str, values: object) -> None:
        if site == "blk.1.conv":
            raise KeyError(site)

    with pytest.raises(KeyError, match=r"blk\.1\.conv"):
        tiny.session().feed_traced([1, 2, 3], stop)


def test_threads_share_a_model(tiny: Model) -> None:
    tokens = TINY_TOKENIZER.encode("One day a little girl went to the park with her dog.")
    expected = tiny.logits(tokens)
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(np.array_equal(tiny.logits(tokens), expected))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [True] * 4


def test_settings(tiny: Model) -> None:
    weights = tiny_model()
    assert (tiny.name, tiny.digest) == (weights.name, weights.digest)
    for name in (
        "d_model",
        "n_layers",
        "n_heads",
        "head_dim",
        "d_state",
        "vocab_size",
        "context_length",
        "scan",
        "activation",
        "gate",
        "weights",
    ):
        assert getattr(tiny.config, name) == getattr(TINY_CONFIG, name)
    assert (tiny.config.embed_mul, tiny.config.logit_shift) == (weights.embed_mul, weights.logit_shift)
    assert tiny.tokenizer.to_bytes() == TINY_TOKENIZER.to_bytes()


def test_sha256() -> None:
    for data in (b"", b"abc", bytes(range(256)) * 5):
        assert _native.sha256(data) == hashlib.sha256(data).digest()


# ---- generation ----------------------------------------------------------------------------------------------------------------------------------


def test_generation(tiny: Model) -> None:
    generation = tiny.generate("Once upon", max_tokens=30, temperature=1, seed=11, logprobs=True)
    assert generation.stop_reason is None
    pieces = list(generation)
    assert generation.stop_reason == ("end" if pieces[-1].token == TINY_TOKENIZER.eot else "max_tokens")
    assert [p.token for p in pieces] == generation.tokens
    assert "".join(p.text for p in pieces) == generation.text
    inputs = [*generation.prompt_tokens, *generation.tokens[:-1]]
    assert inputs[: len(generation.prompt_tokens)] == [TINY_TOKENIZER.eot, *TINY_TOKENIZER.encode("Once upon")]
    logits = tiny.logits(inputs)
    assert generation.logits_digest == hashlib.sha256(logits.astype("<i4").tobytes()).hexdigest()
    rows = log_softmax(logits, tiny.config)[-len(pieces) :]
    assert [p.logprob for p in pieces] == [row[p.token] for row, p in zip(rows, pieces, strict=True)]
    assert np.allclose(np.exp(rows).sum(-1), 1)
    again = tiny.generate(generation.prompt_tokens, max_tokens=30, temperature="1.0", seed=11)
    assert again.finish() == generation.text
    assert again.logits_digest == generation.logits_digest


def test_no_text_is_lost_or_split(tiny: Model) -> None:
    for seed in range(30):
        generation = tiny.generate("a", max_tokens=12, temperature=3, seed=seed)
        pieces = list(generation)
        tokens = [t for t in generation.tokens if t != TINY_TOKENIZER.eot]
        assert "".join(p.text for p in pieces) == TINY_TOKENIZER.decode(tokens)


def test_stop_strings_in_a_generation(tiny: Model) -> None:
    whole = tiny.generate("The", max_tokens=40, temperature=0.9, seed=2).finish()
    stop = whole[5:8]
    generation = tiny.generate("The", max_tokens=40, temperature=0.9, seed=2, stop=["never there", stop])
    assert generation.finish() == whole[: whole.index(stop)]
    assert generation.stop_reason == "stop"


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30)),
)
def test_stop_strings(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    pieces = [text[a:b] for a, b in pairwise(bounds)] or [""]
    stream, out, stopped = StopStrings(stops), "", False
    for i, piece in enumerate(pieces):
        ready, stopped = stream.push(piece, final=i == len(pieces) - 1)
        out += ready
        if stopped:
            break
    # Where the text is first seen to hold a stop string, it is cut at the earliest one.
    seen = text if not stopped else "".join(pieces[: i + 1])
    found = [seen.index(s) for s in stops if s in seen]
    assert stopped == bool(found)
    assert out == (seen[: min(found)] if found else text)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_k": -1},
        {"top_p": 0},
        {"seed": -1},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": [1]},
    ],
    ids=str,
)
def test_bad_options(tiny: Model, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        tiny.generate("a", **options)


def test_bad_prompts(tiny: Model) -> None:
    for empty in ("", []):
        with pytest.raises(ArgumentError, match="empty"):
            tiny.generate(empty)
    with pytest.raises(TokenizerError, match="endoftext"):
        tiny.generate("a<|endoftext|>")
    with pytest.raises(ArgumentError, match="vocabulary"):
        tiny.generate([tiny.config.vocab_size])


# ---- evaluation ----------------------------------------------------------------------------------------------------------------------------------


def test_evaluation_by_hand(tiny: Model, tmp_path: Path) -> None:
    texts = ["The cat sat.", "Ünïcödé → 🙂", "x" * 700]
    path = tmp_path / "data.txt"
    path.write_text("\n<|endoftext|>\n".join([*texts, "\n"]) + "<|endoftext|>\n", encoding="utf-8", newline="")
    nats, tokens = 0.0, 0
    for text in texts:
        ids = TINY_TOKENIZER.encode(text)
        logits = (
            tiny.logits([TINY_TOKENIZER.eot, *ids]).astype(np.float64)
            * tiny.config.embed_mul
            / 2**tiny.config.logit_shift
        )
        for row, target in zip(logits, [*ids, TINY_TOKENIZER.eot], strict=True):
            nats += math.log(sum(math.exp(x - row[target]) for x in row))
            tokens += 1
    result = evaluate(tiny, path)
    assert (result.tokens, result.documents) == (tokens, 3)
    assert result.bytes == sum(len(t.encode()) for t in texts)
    assert result.nats_per_token == pytest.approx(nats / tokens, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-12)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / result.bytes, rel=1e-12)
    assert evaluate(tiny, path, max_documents=1).nats_per_token == pytest.approx(
        document_nats(tiny, TINY_TOKENIZER.encode(texts[0])) / (len(TINY_TOKENIZER.encode(texts[0])) + 1)
    )


# ---- loading -------------------------------------------------------------------------------------------------------------------------------------


def test_loading_by_path_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(tiny_model_bytes())
    monkeypatch.setenv("MAMBA_INTEGER_MODELS", str(tmp_path))
    assert find_model("some") == Model.load(path).path == Model.load(str(path)).path == path
    for unknown in ("other", "./some", "gone.gguf"):
        with pytest.raises(ArgumentError, match="no such|unknown"):
            Model.load(unknown)


def test_a_tokenizer_of_another_size() -> None:
    weights = random_model(TINY_CONFIG, 5, tokenizer=b"junk")
    with pytest.raises((TokenizerError, ModelFormatError)):
        Model.from_bytes(serialize(weights)).encode("a")


def test_no_byte_of_a_model_file_can_change_unnoticed() -> None:
    data = tiny_model_bytes()
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(ModelFormatError):
            Model.from_bytes(bytes(changed))
    for size in range(0, len(data), 1009):
        with pytest.raises(ModelFormatError):
            Model.from_bytes(data[:size])
