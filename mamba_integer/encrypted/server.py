"""The server's side: evaluates on ciphertexts with evaluation keys and a model. It has no key that decrypts, and sees no text, token or logit."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mamba_integer.encrypted import protocol
from mamba_integer.encrypted.keys import PROFILES, Key
from mamba_integer.encrypted.micro import MicroModel
from mamba_integer.encrypted.models import Model, outline
from mamba_integer.encrypted.native import BfvMatrix, MicroServer
from mamba_integer.errors import EncryptedError
from mamba_integer.model_file import IntegerModel

Step = Callable[[bytes], bytes]
OPERATION = struct.Struct("<BH")  # which matrix, and of which layer
EMBED, IN_PROJ, OUT_PROJ, HEAD = range(4)
SPENT = struct.Struct("<Q")  # an answer begins with the microseconds that it took
MAX_REQUEST = 1 << 17
MAX_SESSIONS = 4


class Evaluator:
    """A model ready to be evaluated on ciphertexts. EncryptedError if the key is not for it or its matrices do not fit."""

    def __init__(self, key: Key, model: Model) -> None:
        self.key = key
        profile = "micro" if isinstance(model, MicroModel) else "bfv"
        if key.profile != profile:
            raise EncryptedError(
                f"the key is for the {PROFILES[key.profile]} profile; the model needs {PROFILES[profile]}"
            )
        if key.model != model.digest:
            raise EncryptedError(
                f"the key is for the model {key.model_name} {key.model[:16]}…, not for {model.digest[:16]}…"
            )
        self.welcome = b""
        if isinstance(model, MicroModel):
            self._micro = MicroServer(key.data, model.circuit().to_json())
            self.session: Callable[[], Step] = self._micro_session
        else:
            self.welcome = outline(model)
            self._matrices = _matrices(model)
            self.session = self._bfv_session

    def _micro_session(self) -> Step:
        return self._micro.session().step

    def _bfv_session(self) -> Step:
        """Nothing is remembered between requests: the recurrent state is the client's."""

        def step(request: bytes) -> bytes:
            if len(request) < OPERATION.size:
                raise EncryptedError("a request without an operation")
            which = OPERATION.unpack_from(request)
            if which not in self._matrices:
                raise EncryptedError(f"the model has no matrix {which[0]} in layer {which[1]}")
            return self._matrices[which].apply(request[OPERATION.size :])

        return step


def _matrices(model: IntegerModel) -> dict[tuple[int, int], BfvMatrix]:
    def matrix(name: str) -> BfvMatrix:
        return BfvMatrix(model.tensors[name].astype(np.int8))

    found = {(EMBED, 0): BfvMatrix(model.tensors["token_embd.weight"].T.astype(np.int8), choice=True)}
    found[HEAD, 0] = matrix("token_embd.weight")
    for i in range(model.config.n_layers):
        found[IN_PROJ, i] = matrix(f"blk.{i}.in_proj.weight")
        found[OUT_PROJ, i] = matrix(f"blk.{i}.out_proj.weight")
    return found


def converse(evaluator: Evaluator, connection: socket.socket) -> int:
    """Serves one client to its end; the requests answered. EncryptedError, which the client was told too, for whatever it did wrong."""
    link = protocol.Link(connection, evaluator.key.link)
    answered = 0

    def accept(about: dict[str, Any]) -> bytes:
        for name, expected in evaluator.key.about.items():
            if about.get(name) != expected:
                raise EncryptedError(
                    f"this server has another {name}: keys or models of the two sides do not belong together"
                )
        return evaluator.welcome

    try:
        link.meet(accept)
        step = evaluator.session()
        while True:
            try:
                request = link.receive(protocol.REQUEST, MAX_REQUEST)
            except protocol.ClosedError:
                return answered
            began = time.perf_counter()
            answer = step(request)
            link.send(protocol.ANSWER, SPENT.pack(int(1e6 * (time.perf_counter() - began))) + answer)
            answered += 1
    except EncryptedError as error:
        link.complain(str(error))
        raise
    finally:
        link.close()


def serve(evaluator: Evaluator, server: socket.socket, *, once: bool = False) -> None:
    """Serves clients, at most MAX_SESSIONS at a time, until interrupted; `once`: only the first, whose errors are then raised."""
    if once:
        converse(evaluator, server.accept()[0])
        return
    free = threading.BoundedSemaphore(MAX_SESSIONS)

    def talk(connection: socket.socket) -> None:
        try:
            answered = converse(evaluator, connection)
            print(f"a client was served: {answered} requests", file=sys.stderr, flush=True)
        except EncryptedError as error:
            print(f"a client was refused: {error}", file=sys.stderr, flush=True)
        finally:
            free.release()

    while True:
        free.acquire()
        connection, _ = server.accept()
        threading.Thread(target=talk, args=(connection,), daemon=True).start()
