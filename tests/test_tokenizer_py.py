"""The tokenizer through Python: round trips, errors as exceptions, files, streaming."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
