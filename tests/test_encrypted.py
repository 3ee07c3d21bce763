"""Encrypted inference: the protocol, keys and errors; the BFV profile between two processes' worth of code, on a tiny model for real; the micro model
against its training form, its circuit and golden vectors. (The TFHE profile on ciphertexts is tested in encrypted/tests.)"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamba_integer.cli import main
from mamba_integer.encrypted import client, keys, micro, models, protocol, server
from mamba_integer.encrypted.micro import MicroConfig, MicroModel
from mamba_integer.engine import Model
from mamba_integer.errors import ArgumentError, EncryptedError, ModelFormatError
from mamba_integer.model_file import serialize
from mamba_integer.sampling import Sampling
from tests.models import ROOT, tiny_model

LINK = bytes(range(32))
VECTORS = ROOT / "spec/vectors/micro.json"


# ---- the protocol ----------------------------------------------------------------------------------------------------


OPEN: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _sockets_are_closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def pair() -> tuple[socket.socket, socket.socket]:
    both = socket.socketpair()
    OPEN.extend(both)
    return both


def ends(key: bytes = LINK, other: bytes = LINK) -> tuple[protocol.Link, protocol.Link]:
    a, b = pair()
    return protocol.Link(a, key), protocol.Link(b, other)


def session(
    accept: Callable[[dict[str, Any]], bytes] = lambda about: b"welcome",
) -> tuple[protocol.Link, protocol.Link]:
    """Both ends of a session that has begun."""
    near, far = ends()
    meeting = threading.Thread(target=far.meet, args=(accept,))
    meeting.start()
    assert near.greet({"model": "m"}) == b"welcome"
    meeting.join()
    return near, far


class Recorder:
    """A socket that keeps what is sent through it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.frames.append(data)

    def settimeout(self, seconds: float) -> None:
        pass


def test_messages_arrive_in_order_and_say_their_size() -> None:
    near, far = session()
    for payload in (b"", b"x", bytes(100_000)):
        near.send(protocol.REQUEST, payload)
        assert far.receive(protocol.REQUEST) == payload
        far.send(protocol.ANSWER, payload + b"!")
        assert near.receive(protocol.ANSWER) == payload + b"!"
    assert near.bytes_sent == far.bytes_received
    assert far.bytes_sent == near.bytes_received


def frames(count: int = 2) -> tuple[list[bytes], protocol.Link]:
    """Requests as they lie on the wire, and the end that waits for them."""
    near, far = session()
    recorder = Recorder()
    near._socket = recorder  # type: ignore[assignment]
    for i in range(count):
        near.send(protocol.REQUEST, bytes([i]) * 20)
    return recorder.frames, far


def deliver(far: protocol.Link, *data: bytes) -> None:
    a, b = pair()
    a.sendall(b"".join(data))
    a.close()
    far._socket = b


@pytest.mark.parametrize("at", [0, 3, 4, 5, 20, 21, 29, 32, 33, 40, 52, 53, 84])
def test_a_changed_bit_anywhere_is_refused(at: int) -> None:
    (frame, _), far = frames()
    assert len(frame) == 85
    bad = bytearray(frame)
    bad[at] ^= 1
    deliver(far, bytes(bad), bytes(64))
    with pytest.raises(EncryptedError):
        far.receive(protocol.REQUEST, 100)
    deliver(far, frame)
    assert far.receive(protocol.REQUEST, 100) == bytes(20)  # it was the bit


def test_replayed_lost_and_foreign_messages_are_refused() -> None:
    (first, second), far = frames()
    deliver(far, first, first)
    far.receive(protocol.REQUEST)
    with pytest.raises(EncryptedError, match="message 0 where 1 was due: replayed or lost"):
        far.receive(protocol.REQUEST)
    _, fresh = frames()
    deliver(fresh, first)  # of another session, under the same link key
    with pytest.raises(EncryptedError, match="wrong tag"):
        fresh.receive(protocol.REQUEST)
    (_, skipped), far = frames()
    deliver(far, skipped)
    with pytest.raises(EncryptedError, match="message 1 where 0 was due"):
        far.receive(protocol.REQUEST)
    near, far = session()  # a message turned round
    recorder = Recorder()
    near._socket = recorder  # type: ignore[assignment]
    near.send(protocol.REQUEST, b"mine")
    deliver(near, *recorder.frames)
    with pytest.raises(EncryptedError, match="wrong tag"):
        near.receive(protocol.REQUEST)
    assert second != first


def test_lengths_kinds_and_ends_are_checked() -> None:
    (frame, _), far = frames()
    deliver(far, frame)
    with pytest.raises(EncryptedError, match="20 bytes, where at most 19"):
        far.receive(protocol.REQUEST, 19)
    (frame, _), far = frames()
    deliver(far, frame)
    with pytest.raises(EncryptedError, match="kind 3 where 4"):
        far.receive(protocol.ANSWER)
    for cut in (1, 32, 40, 84):
        (frame, _), far = frames()
        deliver(far, frame[:cut])
        with pytest.raises(EncryptedError, match="closed"):
            far.receive(protocol.REQUEST)
    (frame, _), far = frames()
    deliver(far, b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n")
    with pytest.raises(EncryptedError, match="does not speak"):
        far.receive(protocol.REQUEST)


def test_another_link_key_is_refused_on_both_sides() -> None:
    near, far = ends(other=bytes(32))
    said: list[EncryptedError] = []

    def meet() -> None:
        try:
            far.meet(lambda about: b"")
        except EncryptedError as error:
            said.append(error)
            far.complain(str(error))

    meeting = threading.Thread(target=meet)
    meeting.start()
    with pytest.raises(EncryptedError, match=r"refuses \(unauthenticated\): a message has a wrong tag"):
        near.greet({})
    meeting.join()
    assert len(said) == 1


def test_a_replayed_welcome_is_refused() -> None:
    near, far = ends()
    recorder = Recorder()
    thread = threading.Thread(target=lambda: near.greet({}))
    thread.start()
    far._socket = _Tee(far._socket, recorder)  # type: ignore[assignment]
    far.meet(lambda about: b"old")
    thread.join()
    again, silent = pair()
    fresh = protocol.Link(again, LINK)
    silent.sendall(recorder.frames[0])
    with pytest.raises(EncryptedError, match="another greeting: replayed"):
        fresh.greet({})


class _Tee:
    def __init__(self, inner: socket.socket, recorder: Recorder) -> None:
        self.inner, self.recorder = inner, recorder

    def sendall(self, data: bytes) -> None:
        self.recorder.sendall(data)
        self.inner.sendall(data)

    def recv(self, count: int) -> bytes:
        return self.inner.recv(count)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    _, far = ends()
    deliver(far, data)
    with pytest.raises(EncryptedError):
        far.meet(lambda about: b"")


def test_addresses() -> None:
    for wrong in ("", "nowhere", "host:", ":80", "host:99999", "host:-1", "host:８０"):
        with pytest.raises(EncryptedError, match="HOST:PORT"):
            protocol.connect(wrong)
    listening, address = protocol.listen("127.0.0.1:0")
    with pytest.raises(EncryptedError, match="cannot listen"):
        protocol.listen(address)
    listening.close()
    with pytest.raises(EncryptedError, match="no server at"):
        protocol.connect(address)


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key_files(tmp_path: Path) -> tuple[Path, Path]:
    old = os.umask(0)
    try:
        return keys.generate(tiny_model(), tmp_path / "keys")
    finally:
        os.umask(old)


def test_keys_are_the_owners_alone_and_only_one_decrypts(key_files: tuple[Path, Path]) -> None:
    near, far = (keys.Key.read(path, side) for path, side in zip(key_files, ("client", "server"), strict=True))
    for path in key_files:
        assert path.stat().st_mode & 0o777 == 0o600
    assert key_files[0].parent.stat().st_mode & 0o777 == 0o700
    assert near.about == far.about
    assert near.link == far.link
    assert far.data == b""  # BFV needs no evaluation keys; the secret is in one file
    assert near.data not in key_files[1].read_bytes()
    with pytest.raises(EncryptedError, match="already there"):
        keys.generate(tiny_model(), key_files[0].parent)


def test_key_files_that_are_not_what_they_should_be(key_files: tuple[Path, Path], tmp_path: Path) -> None:
    near, far = key_files
    with pytest.raises(EncryptedError, match="this is the server's key; the client's is needed"):
        keys.Key.read(far, "client")
    data = near.read_bytes()
    for change, message in (
        (b"", "not a key file"),
        (data[:-1], "damaged"),
        (data[:100] + bytes([data[100] ^ 1]) + data[101:], "damaged"),
        (b"PK" + data, "not a key file"),
        (_signed(keys.MAGIC + b"\xff\xff\xff\x7f"), "damaged"),
        (_signed(keys.MAGIC + (2).to_bytes(4, "little") + b"{}" + bytes(40)), "damaged"),
        (_signed(keys.MAGIC + (2).to_bytes(4, "little") + b"[]" + bytes(40)), "damaged"),
    ):
        path = tmp_path / "bad.key"
        path.write_bytes(change)
        path.chmod(0o600)
        with pytest.raises(EncryptedError, match=message):
            keys.Key.read(path, "client")
    near.chmod(0o640)
    with pytest.raises(EncryptedError, match="others may read this key: chmod 600"):
        keys.Key.read(near, "client")
    with pytest.raises(EncryptedError, match="No such file"):
        keys.Key.read(tmp_path / "none", "client")


def _signed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


# ---- the client-aided profile ----------------------------------------------------------------------------------------


@contextmanager
def serving(key: keys.Key, model: models.Model) -> Iterator[Callable[[], socket.socket]]:
    """A server in a thread; gives connections to it."""
    evaluator = server.Evaluator(key, model)
    listening, address = protocol.listen("127.0.0.1:0")
    threading.Thread(target=_until_closed, args=(evaluator, listening), daemon=True).start()
    try:
        yield lambda: protocol.connect(address)
    finally:
        listening.close()


def _until_closed(evaluator: server.Evaluator, listening: socket.socket) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        try:
            server.converse(evaluator, connection)
        except EncryptedError:
            continue


@pytest.mark.parametrize(("temperature", "seed"), [("0", 0), ("1.2", 3)])
def test_a_tiny_model_gives_the_engines_logits(key_files: tuple[Path, Path], temperature: str, seed: int) -> None:
    near, far = (keys.Key.read(path, side) for path, side in zip(key_files, ("client", "server"), strict=True))
    with serving(far, tiny_model()) as connect:
        made = client.generate(near, connect(), "A cat", 5, Sampling.parse(temperature, seed=seed))
    plain = Model.from_bytes(serialize(tiny_model())).generate(
        "A cat", max_tokens=5, temperature=temperature, top_k=0, seed=seed
    )
    plain.finish()
    assert made.tokens == plain.tokens
    assert made.text == plain.text
    assert made.logits_digest == plain.logits_digest
    assert made.costs.round_trips == len(made.logits) * (2 * tiny_model().config.n_layers + 2)
    assert min(made.costs.bytes_received, made.costs.bytes_sent) > 1_000_000  # ciphertexts


def test_other_keys_and_models_are_refused(key_files: tuple[Path, Path], tmp_path: Path) -> None:
    near, far = (keys.Key.read(path, side) for path, side in zip(key_files, ("client", "server"), strict=True))
    with serving(far, tiny_model()) as connect:
        for field, value in (("key_id", "0" * 16), ("model", "0" * 64), ("profile", "micro")):
            wrong = dataclasses.replace(near, **{field: value})
            with pytest.raises(EncryptedError, match="do not belong together"):
                client.Remote(wrong, connect())
        with pytest.raises(EncryptedError, match="wrong tag"):
            client.Remote(dataclasses.replace(near, link=bytes(32)), connect())
        for request, message in (
            (b"", "without an operation"),
            (b"\x09\0\0", "no matrix 9 in layer 0"),
            (b"\x01\x09\0", "no matrix 1 in layer 9"),
        ):
            with closing(client.Remote(near, connect())) as remote, pytest.raises(EncryptedError, match=message):
                remote.ask(request, 100)
        for query in (b"", b"no ciphertext", bytes(20_000)):
            with closing(client.Remote(near, connect())) as remote, pytest.raises(EncryptedError, match="refuses: "):
                remote.ask(b"\x01\0\0" + query, 1 << 20)
        # An answer longer than it may be.
        with closing(client.Remote(near, connect())) as remote, pytest.raises(EncryptedError, match="where at most"):
            remote.ask(b"\x01\0\0" + client.BfvClient.from_bytes(near.data).encrypt(np.ones(24)), 100)
    other = dataclasses.replace(tiny_model(), embed_mul=31)
    with pytest.raises(EncryptedError, match="the key is for the model"):
        server.Evaluator(far, other)
    with pytest.raises(EncryptedError, match="the key is for the client-aided"):
        server.Evaluator(far, micro_model())


def test_a_server_that_lies_about_the_model_is_refused() -> None:
    good = models.outline(tiny_model())
    assert models.read_outline(good).tensors.keys() == {
        name for name in tiny_model().tensors if not models.is_matrix(name)
    }
    at = 4 + int.from_bytes(good[:4], "little")
    header = json.loads(good[4:at])

    def with_header(**changes: object) -> bytes:
        text = json.dumps({**header, **changes}).encode()
        return len(text).to_bytes(4, "little") + text + good[at:]

    changed: list[bytes] = [
        b"",
        good[:50],
        good[: at + 10],
        with_header(config={**header["config"], "d_model": 4096}),
        with_header(config={**header["config"], "d_model": 0}),
        with_header(embed_mul=0),
        with_header(embed_mul=True),
        with_header(in_proj_shift=[25, 0]),
        with_header(in_proj_shift=[1]),
        with_header(name=None),
        good[:at] + b"\x80" * (len(good) - at),
    ]
    for bad in changed:
        with pytest.raises(EncryptedError, match="outline of the model is damaged"):
            models.read_outline(bad)


def test_what_the_client_is_told_holds_no_matrix() -> None:
    told = models.outline(tiny_model())
    matrices = [name for name in tiny_model().tensors if models.is_matrix(name)]
    assert len(matrices) == 1 + 2 * tiny_model().config.n_layers
    for name in matrices:
        W = tiny_model().tensors[name]
        assert W[0].astype(np.int8).tobytes() not in told


# ---- the micro model -------------------------------------------------------------------------------------------------


def micro_model(seed: int = 1, layers: int = 2) -> MicroModel:
    """Random tables and weights within every bound."""
    r = np.random.default_rng(seed)
    config = MicroConfig(d_model=8, n_layers=layers, n_heads=2, d_inner=8)
    tensors = {}
    for key, (shape, (low, high)) in config.tensors().items():
        t = r.integers(low, high + 1, shape)
        limit = {
            "conv": micro.units(micro.HISTORY),
            "in_proj": micro.units(micro.RESIDUAL),
            "out_proj": micro.OUT_UNITS,
        }
        if (units := limit.get(key.split(".")[-1])) is not None:
            t = np.zeros(shape, np.int64)
            for row in t:
                for at in r.integers(0, shape[1], units):
                    row[at] += 1 if row[at] > 0 or (row[at] == 0 and r.integers(2)) else -1
        tensors[key] = t
    return MicroModel(config, "random", "", tensors)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_circuit_is_the_model(layers: int) -> None:
    model = micro_model(layers, layers)
    circuit = model.circuit()
    tokens = np.random.default_rng(3).integers(0, 32, 60)
    state = circuit.initial
    for token, expected in zip(tokens, model.logits(tokens), strict=True):
        logits, state = circuit.step(state, int(token))
        assert logits == expected.tolist()
    batch = np.random.default_rng(4).integers(0, 32, (3, 20))
    assert (model.logits(batch) == np.stack([model.logits(row) for row in batch])).all()


def test_the_shipped_micro_model_gives_its_golden_vectors() -> None:
    golden = json.loads(VECTORS.read_text())
    model = models.load("micro")
    assert isinstance(model, MicroModel)
    assert model.digest == golden["digest"]
    assert model.logits(micro.encode(golden["text"])).tolist() == golden["logits"]
    circuit = model.circuit()
    state = circuit.initial
    for character, expected in zip(micro.encode(golden["text"]), golden["logits"], strict=True):
        logits, state = circuit.step(state, character)
        assert logits == expected


def test_training_computes_the_integers_and_writes_them(tmp_path: Path) -> None:
    import torch

    from mamba_integer.encrypted.train import Micro, sentences

    torch.manual_seed(5)
    for layers in (1, 2):
        form = Micro(MicroConfig(d_model=16, n_layers=layers, n_heads=4, d_inner=16))
        model = form.export("m", "")
        rows = ["\n" + s for s in sentences((ROOT / "data/tinystories_sample.txt").read_text()[:4000]) if len(s) > 40][
            :8
        ]
        tokens = np.array([micro.encode(row[:40]) for row in rows])
        with torch.no_grad():
            trained = form(torch.from_numpy(tokens)).numpy()
        assert (trained == model.logits(tokens)).all()
        model.save(tmp_path / "m.json")
        assert MicroModel.load(tmp_path / "m.json").digest == model.digest


def test_a_short_training_lowers_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "shape.json"
    config.write_text('{"d_model": 8, "n_layers": 1, "n_heads": 2, "d_inner": 8}')
    common = [
        "encrypted",
        "train",
        "--config",
        str(config),
        "--data",
        str(ROOT / "data/tinystories_sample.txt"),
        "--json",
    ]
    common += ["-o", str(tmp_path / "out.json"), "--batch", "16", "--length", "16", "--lr", "4e-2", "--steps"]
    bits = []
    for steps in ("1", "100"):
        assert main([*common, steps]) == 0
        bits.append(json.loads(capsys.readouterr().out)["bits_per_character"])
    assert bits[1] < bits[0] - 0.5
    assert MicroModel.load(tmp_path / "out.json").tables == 8 * 6 + 4 + 8


def test_micro_files_that_are_none(tmp_path: Path) -> None:
    model = micro_model()
    path = tmp_path / "m.json"
    model.save(path)
    good = json.loads(path.read_text())

    def changed(**values: object) -> bytes:
        return json.dumps({**good, **values}).encode()

    tensors = good["tensors"]
    for data, message in (
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "not a micro model"),
        (changed(format="x"), "not a micro model"),
        (changed(name=1), "name, about or tensors"),
        (changed(config={}), "configuration has the fields"),
        (changed(config={**good["config"], "d_model": 17}), "d_model must be"),
        (changed(tensors={**tensors, "x": [1]}), "unknown tensor"),
        (changed(tensors={k: v for k, v in tensors.items() if k != "head"}), "'head' is missing"),
        (changed(tensors={**tensors, "head": tensors["head"][1:]}), "of the shape"),
        (changed(tensors={**tensors, "bias": [[1], [1, 2]]}), "not an array of integers"),
        (changed(tensors={**tensors, "bias": [0.5] * 32}), "not an array of integers"),
        (changed(tensors={**tensors, "bias": [128] * 32}), "outside -127"),
        (changed(tensors={**tensors, "0.conv": [[3, 3, 0, 0]] * len(tensors["0.conv"])}), "sum to more than 5"),
        (changed(tensors={**tensors, "bias": [1] * 32}), "damaged or altered"),
        (b" " * (micro.MAX_BYTES + 1), "too large"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelFormatError, match=message):
            MicroModel.load(path)
    with pytest.raises(ArgumentError, match="has no character 'A'"):
        micro.encode("A")


# ---- the command line ------------------------------------------------------------------------------------------------


def test_the_verbs_say_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client_key = tmp_path / "keys/client.key"
    assert main(["encrypted", "keygen", "--model", "micro-none", "-o", str(tmp_path)]) == 2
    assert main(["encrypted", "keygen", "--model", "tinystories", "-o", str(tmp_path / "keys"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["profile"] == "bfv"
    assert out["client_key"] == str(client_key)
    for arguments, message in (
        (["encrypted"], "one of keygen, serve, generate, train"),
        (["encrypted", "keygen", "--model", "tinystories", "-o", str(tmp_path / "keys")], "already there"),
        (["encrypted", "serve", "--model", "tinystories", "--key", str(client_key)], "the server's is needed"),
        (["encrypted", "generate", "--key", str(client_key), "--prompt", ""], "prompt is empty"),
        (
            ["encrypted", "generate", "--key", str(client_key), "--prompt", "x", "--server", "127.0.0.1:1"],
            "no server at",
        ),
        (["encrypted", "generate", "--key", str(client_key), "--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        (["encrypted", "generate", "--key", str(client_key), "--prompt", "x", "--check", "micro"], "another model"),
        (["encrypted", "train", "--config", "none.json", "--data", "x", "-o", str(tmp_path / "o")], "none.json"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert said.out == ""
