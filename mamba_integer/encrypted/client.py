"""The client's side: holds the secret key, encrypts, decrypts, chooses tokens. Everything that comes from the server is checked before it is used."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mamba_integer import arithmetic as ar
from mamba_integer.encrypted import micro, protocol
from mamba_integer.encrypted.keys import Key
from mamba_integer.encrypted.models import MAX_OUTLINE, read_outline
from mamba_integer.encrypted.native import BfvClient, MicroClient
from mamba_integer.encrypted.server import EMBED, HEAD, IN_PROJ, OPERATION, OUT_PROJ, SPENT
from mamba_integer.errors import ArgumentError, EncryptedError, TokenizerError
from mamba_integer.model_file import IntegerModel
from mamba_integer.reference import Reference
from mamba_integer.sampling import Sampling
from mamba_integer.tokenizer import Tokenizer


@dataclass
class Costs:
    """Seconds by stage (`server` as the server says; `transfer` is what is left of the time between request and answer) and bytes on the wire."""

    encrypt: float = 0.0
    server: float = 0.0
    transfer: float = 0.0
    decrypt: float = 0.0
    client: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    round_trips: int = 0

    def to_json(self) -> dict[str, Any]:
        seconds = ("encrypt", "server", "transfer", "decrypt", "client")
        return {
            "seconds": {name: round(getattr(self, name), 4) for name in seconds},
            **{name: getattr(self, name) for name in ("bytes_sent", "bytes_received", "round_trips")},
        }


class Remote:
    """A session with a server. Raises EncryptedError if it has other keys or another model, or is none."""

    def __init__(self, key: Key, connection: socket.socket) -> None:
        self.costs = Costs()
        self._link = protocol.Link(connection, key.link)
        try:
            self.welcome = self._link.greet(key.about, MAX_OUTLINE)
        except EncryptedError:
            self.close()
            raise

    def ask(self, request: bytes, limit: int) -> bytes:
        """The server's answer to one request, at most `limit` bytes."""
        began = time.perf_counter()
        self._link.send(protocol.REQUEST, request)
        answer = self._link.receive(protocol.ANSWER, limit + SPENT.size)
        elapsed = time.perf_counter() - began
        if len(answer) < SPENT.size:
            raise EncryptedError("the server's answer is too short")
        spent = min(SPENT.unpack_from(answer)[0] / 1e6, elapsed)
        self.costs.server += spent
        self.costs.transfer += elapsed - spent
        self.costs.round_trips += 1
        self.costs.bytes_sent, self.costs.bytes_received = self._link.bytes_sent, self._link.bytes_received
        return answer[SPENT.size :]

    def close(self) -> None:
        self._link.close()


class RemoteReference(Reference):
    """The integer model whose matrices are at the server: every product is asked for on a ciphertext, all else is computed here."""

    def __init__(self, model: IntegerModel, secret: BfvClient, remote: Remote) -> None:
        super().__init__(model)
        self._secret, self._remote = secret, remote

    def _embed(self, token: ar.Ints) -> ar.Ints:
        c = self.config
        choice = (np.arange(c.vocab_size) == token).astype(np.int64)
        row = self._asked((EMBED, 0), choice, c.d_model)
        if int(np.abs(row).max()) > 127:
            raise EncryptedError("the server's answer is not a row of an embedding")
        return row

    def _product(self, name: str, x: ar.Ints) -> ar.Ints:
        c = self.config
        if name == "token_embd":
            return self._asked((HEAD, 0), x, c.vocab_size)
        _, layer, part = name.split(".")
        which, rows = (IN_PROJ, c.d_in_proj) if part == "in_proj" else (OUT_PROJ, c.d_model)
        return self._asked((which, int(layer)), x, rows)

    def _asked(self, which: tuple[int, int], x: ar.Ints, rows: int) -> ar.Ints:
        costs = self._remote.costs
        began = time.perf_counter()
        request = OPERATION.pack(*which) + self._secret.encrypt(x)
        costs.encrypt += time.perf_counter() - began
        answer = self._remote.ask(request, protocol.MAX_PAYLOAD)
        began = time.perf_counter()
        found = self._secret.decrypt(answer, rows, len(x))
        costs.decrypt += time.perf_counter() - began
        return found


@dataclass
class Generation:
    """What came of it. logits: int32 of every position, the prompt's included. distance: of the micro profile, how far from a whole number the worst
    logit was before rounding (0.5 would be a wrong one). costs: of the whole session; positions: how many tokens were fed."""

    prompt_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    stop_reason: str = "max_tokens"
    logits: list[ar.Ints] = field(default_factory=list)
    distance: float | None = None
    costs: Costs = field(default_factory=Costs)
    seconds: float = 0.0

    @property
    def logits_digest(self) -> str:
        """SHA-256 over the logits as `mamba-integer generate` makes it."""
        return hashlib.sha256(b"".join(row.astype("<i4").tobytes() for row in self.logits)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        positions = len(self.logits)
        out = {
            "text": self.text,
            "tokens": self.tokens,
            "prompt_tokens": self.prompt_tokens,
            "stop_reason": self.stop_reason,
            "logits_digest": self.logits_digest,
            "positions": positions,
            "seconds_total": round(self.seconds, 3),
            "seconds_per_token": round(self.seconds / max(positions, 1), 3),
            **self.costs.to_json(),
        }
        return out if self.distance is None else {**out, "worst_distance": round(self.distance, 4)}


class _Bfv:
    """The client-aided profile as `generate` sees it: token by token, with the shape of the model that the server tells of."""

    def __init__(self, key: Key, remote: Remote) -> None:
        model = read_outline(remote.welcome)
        try:
            self._tokenizer = Tokenizer.from_bytes(model.tokenizer)
        except (TokenizerError, ArgumentError):
            raise EncryptedError("the server's outline of the model is damaged: its tokenizer") from None
        if self._tokenizer.vocab_size != model.config.vocab_size:
            raise EncryptedError("the server's outline of the model is damaged: its tokenizer has another vocabulary")
        self._reference = RemoteReference(model, BfvClient.from_bytes(key.data), remote)
        self.end, self.scale, self.shift = self._tokenizer.eot, model.embed_mul, model.logit_shift
        self.distance: float | None = None

    def encode(self, prompt: str) -> list[int]:
        return [self.end, *self._tokenizer.encode(prompt)]

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def step(self, token: int) -> ar.Ints:
        return ar.ints(self._reference.step(token))


class _Micro:
    """The non-interactive profile: one request a character."""

    end, scale, shift = 0, 1, micro.LOGIT_SHIFT

    def __init__(self, key: Key, remote: Remote) -> None:
        self._secret, self._remote = MicroClient.from_bytes(key.data), remote
        self.distance: float | None = 0.0

    def encode(self, prompt: str) -> list[int]:
        return [self.end, *micro.encode(prompt)]

    def decode(self, tokens: list[int]) -> str:
        return "".join(micro.ALPHABET[t] for t in tokens)

    def step(self, token: int) -> ar.Ints:
        costs, count = self._remote.costs, len(micro.ALPHABET)
        began = time.perf_counter()
        query = self._secret.encrypt(token, count)
        costs.encrypt += time.perf_counter() - began
        answer = self._remote.ask(query, protocol.MAX_PAYLOAD)
        began = time.perf_counter()
        logits, distance = self._secret.decrypt(answer, count)
        costs.decrypt += time.perf_counter() - began
        self.distance = max(self.distance or 0.0, distance)
        return logits


def _run(model: _Bfv | _Micro, out: Generation, max_tokens: int, sampling: Sampling, fed: Callable[[], object]) -> None:
    for token in out.prompt_tokens:
        out.logits.append(model.step(token))
        fed()
    while True:
        s = sampling
        row, at = out.logits[-1], len(out.tokens)
        token = ar.sample(row, model.scale, model.shift, s.temperature, s.top_k, s.top_p, s.seed, at)
        out.tokens.append(token)
        if token == model.end:
            out.stop_reason = "end"
        if token == model.end or len(out.tokens) == max_tokens:
            return
        out.logits.append(model.step(token))
        fed()


def generate(
    key: Key,
    connection: socket.socket,
    prompt: str,
    max_tokens: int,
    sampling: Sampling,
    progress: Callable[[int, int], object] = lambda done, most: None,
) -> Generation:
    """Continues a prompt with the model of a server that sees neither. `progress(fed, most)` after each position; an interrupt ends it early.

    Raises EncryptedError for a server or key that is not as it should be, ArgumentError or TokenizerError for the prompt.
    """
    remote = Remote(key, connection)
    try:
        began = time.perf_counter()
        model = _Micro(key, remote) if key.profile == "micro" else _Bfv(key, remote)
        out = Generation(prompt_tokens=model.encode(prompt), costs=remote.costs)
        most = len(out.prompt_tokens) + max_tokens - 1
        try:
            _run(model, out, max_tokens, sampling, lambda: progress(len(out.logits), most))
        except KeyboardInterrupt:  # what was computed until then is kept
            out.stop_reason = "interrupted"
        out.text = model.decode([t for t in out.tokens if t != model.end])
        out.seconds = time.perf_counter() - began
        out.distance = model.distance
        costs = out.costs
        costs.client = out.seconds - costs.encrypt - costs.server - costs.transfer - costs.decrypt
        return out
    finally:
        remote.close()
