"""The tokenizer through Python: round trips, errors as exceptions, files, streaming."""

from __future__ import annotations

import base64
import gc
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from bench.tokenizer import TIKTOKEN_PATTERN
from mamba_integer.errors import ArgumentError, MambaIntegerError, TokenizerError
from mamba_integer.tokenizer import END_OF_TEXT, StreamDecoder, Tokenizer, documents, read_text

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = documents(read_text(ROOT / "data/tinystories_sample.txt"))
TOKENIZER = Tokenizer.train(SAMPLE[:60], 400)


def test_vocabulary() -> None:
    assert TOKENIZER.vocab_size == 400
    assert TOKENIZER.decode_bytes([TOKENIZER.eot]) == END_OF_TEXT.encode()


@given(st.text())
def test_round_trip(text: str) -> None:
    if END_OF_TEXT in text:
        return
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= t < TOKENIZER.vocab_size and t != TOKENIZER.eot for t in ids)


def test_round_trip_of_the_sample() -> None:
    for text, ids in zip(SAMPLE, TOKENIZER.encode_batch(SAMPLE), strict=True):
        assert TOKENIZER.decode(ids) == text
        assert len(ids) < len(text) * 0.75


@given(st.text(alphabet="añ→🙂 é\u0301한", max_size=40))
def test_streaming_never_splits_a_character(text: str) -> None:
    stream = StreamDecoder(TOKENIZER)
    pieces = [stream.push(t) for t in TOKENIZER.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces)


def test_a_cut_character_becomes_a_replacement() -> None:
    cut = TOKENIZER.encode("🙂")[:-1]
    stream = StreamDecoder(TOKENIZER)
    assert "".join(stream.push(t) for t in cut) == ""
    assert stream.finish() == "\ufffd"
    assert TOKENIZER.decode(cut) == "\ufffd"


def test_special_tokens_are_refused_in_text() -> None:
    with pytest.raises(TokenizerError, match="endoftext"):
        TOKENIZER.encode(f"a {END_OF_TEXT} b")
    assert TOKENIZER.eot in TOKENIZER.encode(f"a {END_OF_TEXT} b", allow_special=True)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "t.bpe"
    TOKENIZER.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.to_bytes() == TOKENIZER.to_bytes() == path.read_bytes()
    assert loaded.encode(SAMPLE[0]) == TOKENIZER.encode(SAMPLE[0])


def test_training_is_deterministic() -> None:
    assert Tokenizer.train(SAMPLE[:60], 400).to_bytes() == TOKENIZER.to_bytes()


@pytest.mark.parametrize("data", [b"", b"not a tokenizer", b"\xff" * 100, TOKENIZER.to_bytes()[:-7]])
def test_broken_files(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.from_bytes(data)
    (tmp_path / "broken.bpe").write_bytes(data)
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path / "broken.bpe")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="none.bpe"):
        Tokenizer.load(tmp_path / "none.bpe")


@pytest.mark.parametrize("token", [400, -1, 1 << 31, 1 << 32, 1 << 70])
def test_unknown_ids(token: int) -> None:
    with pytest.raises(TokenizerError, match="vocabulary|unknown"):
        TOKENIZER.decode([token])


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        TOKENIZER.encode("\ud800")


@pytest.mark.parametrize("size", [0, 5, 256])
def test_too_small_vocabulary(size: int) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.train("some text", size)


def test_documents() -> None:
    text = f"\nfirst\nstory\n{END_OF_TEXT}\n\n{END_OF_TEXT}\nsecond {END_OF_TEXT} inside\n\n{END_OF_TEXT}\r\nthird"
    assert documents(text) == ["first\nstory", f"second {END_OF_TEXT} inside", "third"]


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for content, message in ((b"", "no text"), (b"ok \xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=message):
            read_text(path)
    with pytest.raises(MambaIntegerError, match="gone"):
        read_text(tmp_path / "gone")
    path.write_bytes(b"a\r\nb")
    assert read_text(path) == "a\r\nb"


def test_arrays_and_batches_are_the_same_ids() -> None:
    texts = [*SAMPLE[:20], "", "é🙂", b"bytes \xff"]
    lists = TOKENIZER.encode_batch(texts)
    assert lists == [TOKENIZER.encode(text) for text in texts]
    for threads in (1, 3):
        tokens, ends = TOKENIZER.encode_batch_to_numpy(iter(texts), threads=threads)
        assert tokens.dtype == np.uint32
        assert ends.dtype == np.int64
        assert [tokens[a:b].tolist() for a, b in itertools.pairwise(ends)] == lists
    for text, ids in zip(texts, lists, strict=True):
        array = TOKENIZER.encode_to_numpy(text)
        assert array.tolist() == ids
        array += 1  # it is the caller's own
        assert TOKENIZER.encode(text) == ids
    assert TOKENIZER.decode_batch(lists[:3]) == texts[:3]
    with pytest.raises(TokenizerError, match="one text"):
        TOKENIZER.encode_batch("text")
    with pytest.raises(TypeError):
        TOKENIZER.encode(7)  # type: ignore[arg-type]


def test_arrays_outlive_their_tokenizer() -> None:
    tokenizer = Tokenizer.from_bytes(TOKENIZER.to_bytes())
    array = tokenizer.encode_to_numpy(SAMPLE[0])
    del tokenizer
    gc.collect()
    assert array.tolist() == TOKENIZER.encode(SAMPLE[0])


@given(st.text(alphabet="añ→🙂 é\u0301한b", max_size=40))
def test_offsets(text: str) -> None:
    ids, offsets = TOKENIZER.encode_with_offsets(text)
    assert ids == TOKENIZER.encode(text)
    at = 0
    for token, (begin, end) in zip(ids, offsets, strict=True):
        data = TOKENIZER.decode_bytes([token])
        characters = text.encode()[: at + len(data)].decode(errors="replace")
        assert end == len(characters)
        assert begin == len(text.encode()[:at].decode(errors="ignore"))
        at += len(data)


def test_special_tokens_by_name() -> None:
    text, eot = f"a {END_OF_TEXT} b", TOKENIZER.eot
    assert TOKENIZER.special_tokens == {END_OF_TEXT: eot}
    for allowed in ("all", {END_OF_TEXT}):
        assert eot in TOKENIZER.encode(text, allowed_special=allowed)
    ids = TOKENIZER.encode(text, disallowed_special=())
    assert eot not in ids
    assert TOKENIZER.decode(ids) == text
    assert eot in TOKENIZER.encode_to_numpy(text, allow_special=True)
    for name in ("unknown", ["unknown"]):
        with pytest.raises(TokenizerError, match=r"unknown"):
            TOKENIZER.encode(text, allowed_special=name)
    with pytest.raises(TokenizerError, match="endoftext"):
        TOKENIZER.encode_batch(["fine", text])


def test_training_from_files_and_in_threads(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, texts in zip(paths, (SAMPLE[:30], SAMPLE[30:60]), strict=True):
        path.write_text(f"\n{END_OF_TEXT}\n".join(texts), newline="")
    for threads in (0, 1, 5):
        assert Tokenizer.train_files(paths, 400, threads=threads).to_bytes() == TOKENIZER.to_bytes()
        assert Tokenizer.train(iter(SAMPLE[:60]), 400, threads=threads).to_bytes() == TOKENIZER.to_bytes()
    with pytest.raises(TokenizerError, match="gone"):
        Tokenizer.train_files([tmp_path / "gone"], 400)


def test_forms_of_other_makers(tmp_path: Path) -> None:
    tiktoken, json_file = TOKENIZER.to_tiktoken(), TOKENIZER.to_huggingface()
    (tmp_path / "tokenizer.json").write_bytes(json_file)
    for again in (
        Tokenizer.from_tiktoken(tiktoken, {END_OF_TEXT: TOKENIZER.eot}),
        Tokenizer.from_huggingface(json_file),
        Tokenizer.from_huggingface(tmp_path / "tokenizer.json"),
    ):
        assert again.to_bytes() == TOKENIZER.to_bytes()
    assert json.loads(json_file)["model"]["vocab"][END_OF_TEXT] == TOKENIZER.eot
    other = Tokenizer.from_tiktoken(tiktoken, {"<|a|>": 1000, "<|b|>": 1001})
    assert other.vocab_size == 1002
    assert other.encode("x<|b|>", allowed_special="all") == [*TOKENIZER.encode("x"), 1001]
    assert Tokenizer.from_huggingface(other.to_huggingface()).to_huggingface() == other.to_huggingface()
    for refused in (other.to_bytes, lambda: other.save(tmp_path / "x"), lambda: other.eot):
        with pytest.raises(TokenizerError):
            refused()
    assert not (tmp_path / "x").exists()
    with pytest.raises(TokenizerError, match="gone"):
        Tokenizer.from_tiktoken(tmp_path / "gone")


# As files of other makers have it.
OLDER_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def test_the_older_pattern_is_kept() -> None:
    content = json.loads(TOKENIZER.to_huggingface())
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = OLDER_PATTERN
    older = Tokenizer.from_huggingface(json.dumps(content).encode())
    assert older.encode("a\n  ") == TOKENIZER.encode("a\n") + TOKENIZER.encode("  ")
    assert json.loads(older.to_huggingface()) == content
    with pytest.raises(TokenizerError, match="pattern"):
        older.to_bytes()


def _changed(path: str, value: object) -> bytes:
    content = json.loads(TOKENIZER.to_huggingface())
    *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at = content
    for key in keys:
        at = at[key]
    at[last] = value
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff{}",
        b"[" * 100_000,
        b'{"model":' * 50_000,
        _changed("model/type", "WordPiece"),
        _changed("model/dropout", 0.1),
        _changed("model/byte_fallback", True),
        _changed("model/vocab", []),
        _changed("model/vocab/a", -1),
        _changed("model/vocab/a", 1.5),
        _changed("model/vocab/a", 98),
        _changed("model/vocab/a", "97"),
        _changed("model/vocab/ x", 999),
        _changed("model/merges", {}),
        _changed("model/merges/0", "ab"),
        _changed("model/merges/0", ["a"]),
        _changed("model/merges/0", ["a", 1]),
        _changed("model/merges/0", ["a", "b", "c"]),
        _changed("model/merges/0", ["nothing", "here"]),
        _changed("normalizer", {"type": "NFC"}),
        _changed("pre_tokenizer", None),
        _changed("pre_tokenizer/pretokenizers/0/pattern/Regex", r"\w+"),
        _changed("pre_tokenizer/pretokenizers/0/behavior", "Removed"),
        _changed("pre_tokenizer/pretokenizers/1/add_prefix_space", True),
        _changed("added_tokens", {}),
        _changed("added_tokens/0/lstrip", True),
        _changed("added_tokens/0/id", True),
        _changed("added_tokens/0/id", 5),
        _changed("added_tokens/0/content", ""),
    ],
)
def test_what_is_no_tokenizer_json(file: bytes) -> None:
    with pytest.raises(TokenizerError):
        Tokenizer.from_huggingface(file)


TEXTS = [
    *SAMPLE[:10],
    "Ünïcödé — «naïve» façade; Привет, мир! Ελληνικά. שלום עולם. مرحبا بالعالم 123456",
    "你好，世界。日本語のテキスト　です。한국어 텍스트. ไทย हिन्दी नमस्ते ½²³ Ⅷ",
    "def f(x):\n    return {'a': [1, 22, 333, 4444]}\r\n\r\n\tif x != 0x1F: pass  # it's",
    "👩‍👩‍👧 🇩🇪 e\u0301 \u2028\u00a0\u3000x '\u017f I'LL we'Ve \n \n\n  end  \n  ",
    "a" * 3000,
    " " * 3000,
    "'\"" * 1000,
]


def test_as_tiktoken_does() -> None:
    lines = [line.split() for line in TOKENIZER.to_tiktoken().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    special = {END_OF_TEXT: TOKENIZER.eot}
    theirs = tiktoken.Encoding("t", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    for text in TEXTS:
        assert TOKENIZER.encode(text) == theirs.encode(text)


def test_as_the_package_tokenizers_does() -> None:
    theirs = tokenizers.Tokenizer.from_str(TOKENIZER.to_huggingface().decode())
    for text in TEXTS:
        encoding = theirs.encode(text)
        ids, offsets = TOKENIZER.encode_with_offsets(text)
        assert ids == encoding.ids
        assert theirs.decode(ids) == text
        assert offsets == encoding.offsets
    assert theirs.encode(f"a{END_OF_TEXT}").ids == TOKENIZER.encode(f"a{END_OF_TEXT}", allow_special=True)


def test_as_transformers_does(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.to_huggingface())
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=END_OF_TEXT)
    assert (len(theirs), theirs.eos_token_id) == (TOKENIZER.vocab_size, TOKENIZER.eot)
    for text in TEXTS:
        ids = TOKENIZER.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    text = f"One.{END_OF_TEXT}Two."
    ids = TOKENIZER.encode(text, allow_special=True)
    assert theirs(text)["input_ids"] == ids
    assert ids.count(TOKENIZER.eot) == 1
    assert theirs.decode(ids) == text
    assert theirs.decode(ids, skip_special_tokens=True) == "One.Two."
    # What it saves is read by us.
    theirs.save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_huggingface(tmp_path / "saved/tokenizer.json").to_bytes() == TOKENIZER.to_bytes()
