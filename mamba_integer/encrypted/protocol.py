"""Messages between client and server: framed, numbered and authenticated. Knows sockets; knows neither models nor ciphertexts.

A frame is `MIE1`, kind (1 byte), session (16), counter (8), length (4), payload, tag (32), numbers little-endian. The tag is HMAC-SHA256 over all before it.
Both sides hold the link key that `keygen` made. HELLO and WELCOME exchange a nonce each under that key; session number and one key for each direction are
derived from both nonces, so nothing recorded in another session, direction or place of the count passes. Kinds are checked by who expects them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mamba_integer.errors import EncryptedError

MAGIC = b"MIE1"
HELLO, WELCOME, REQUEST, ANSWER, ERROR = range(1, 6)
NONCE = 16
TAG = 32
MAX_PAYLOAD = 1 << 26
MAX_HELLO = 1 << 12
TIMEOUT = 600.0  # seconds of silence
_HEAD = struct.Struct("<4sB16sQI")


class Link:
    """One connection. `bytes_sent` and `bytes_received` count whole frames."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        self._socket, self._key = connection, key
        self._session = bytes(16)
        self._keys = (key, key)  # to send, to receive
        self._sent = self._received = 0
        self.bytes_sent = self.bytes_received = 0
        connection.settimeout(TIMEOUT)

    def send(self, kind: int, payload: bytes) -> None:
        """Raises EncryptedError if the other side is gone."""
        head = _HEAD.pack(MAGIC, kind, self._session, self._sent, len(payload))
        tag = _tag(self._keys[0], head, payload)
        try:
            self._socket.sendall(head + payload + tag)
        except OSError as error:
            raise EncryptedError(f"the connection broke: {error.strerror or error}") from None
        self._sent += 1
        self.bytes_sent += _HEAD.size + len(payload) + TAG

    def receive(self, kind: int, limit: int = MAX_PAYLOAD) -> bytes:
        """The payload of the next message, which must be of this kind. EncryptedError for anything else, and for what the other side complains of."""
        magic, found, session, counter, length = _HEAD.unpack(self._exactly(_HEAD.size))
        if magic != MAGIC:
            raise EncryptedError("the other side does not speak this protocol")
        if length > (limit if found != ERROR else 1 << 10):
            raise EncryptedError(f"a message of {length} bytes, where at most {limit} are allowed")
        payload = self._exactly(length)
        head = _HEAD.pack(magic, found, session, counter, length)
        if not hmac.compare_digest(_tag(self._keys[1], head, payload), self._exactly(TAG)):
            if found == ERROR:  # of a server that does not know our key
                raise EncryptedError(f"the other side refuses (unauthenticated): {_line(payload)}")
            raise EncryptedError("a message has a wrong tag: corrupted, or made with another key")
        if session != self._session:
            raise EncryptedError("a message of another session: replayed")
        if counter != self._received:
            raise EncryptedError(f"message {counter} where {self._received} was due: replayed or lost")
        self._received += 1
        self.bytes_received += _HEAD.size + length + TAG
        if found == ERROR:
            raise EncryptedError(f"the other side refuses: {_line(payload)}")
        if found != kind:
            raise EncryptedError(f"a message of kind {found} where {kind} was due")
        return payload

    def complain(self, message: str) -> None:
        """Tells the other side what is wrong, if it still listens."""
        try:
            self.send(ERROR, message.encode()[:1000])
        except EncryptedError:
            return

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                part = self._socket.recv(min(count, 1 << 20))
            except TimeoutError:
                raise EncryptedError(f"no message for {TIMEOUT:.0f} s") from None
            except OSError as error:
                raise EncryptedError(f"the connection broke: {error.strerror or error}") from None
            if not part:
                raise ClosedError(
                    "the other side closed the connection" + (" in the middle of a message" if parts else "")
                )
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _derive(self, nonces: bytes, client: bool) -> None:
        def key(purpose: bytes) -> bytes:
            return hmac.digest(self._key, purpose + nonces, "sha256")

        to_server, to_client = key(b"to server"), key(b"to client")
        self._session = key(b"session")[:16]
        self._keys = (to_server, to_client) if client else (to_client, to_server)
        self._sent = self._received = 0

    # ---- the beginning of a session ----------------------------------------------------------------------------------

    def greet(self, about: dict[str, str], limit: int = MAX_PAYLOAD) -> bytes:
        """The client's side: names what it wants (profile, model, key); what the server welcomes it with."""
        nonce = secrets.token_bytes(NONCE)
        self.send(HELLO, nonce + json.dumps(about).encode())
        answer = self.receive(WELCOME, limit)
        if len(answer) < 2 * NONCE or answer[:NONCE] != nonce:
            raise EncryptedError("the server's welcome is to another greeting: replayed")
        self._derive(answer[: 2 * NONCE], client=True)
        return answer[2 * NONCE :]

    def meet(self, accept: Callable[[dict[str, Any]], bytes]) -> None:
        """The server's side: `accept` judges the greeting (EncryptedError to refuse) and gives what to welcome it with."""
        hello = self.receive(HELLO, MAX_HELLO)
        try:
            about = json.loads(hello[NONCE:])
        except (ValueError, RecursionError):
            about = None
        if len(hello) < NONCE or not isinstance(about, dict):
            raise EncryptedError("the greeting is damaged")
        nonces = hello[:NONCE] + secrets.token_bytes(NONCE)
        self.send(WELCOME, nonces + accept(about))
        self._derive(nonces, client=False)


class ClosedError(EncryptedError):
    """The other side hung up."""


def _tag(key: bytes, head: bytes, payload: bytes) -> bytes:
    mac = hmac.new(key, head, hashlib.sha256)
    mac.update(payload)
    return mac.digest()


def _line(payload: bytes) -> str:
    text = payload.decode("utf-8", "replace")[:300]
    return "".join(c if c.isprintable() else " " for c in text)


# ---- addresses -------------------------------------------------------------------------------------------------------


def connect(address: str) -> socket.socket:
    """HOST:PORT, or unix:PATH. Raises EncryptedError."""
    try:
        if address.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(address[5:])
        else:
            connection = socket.create_connection(_host(address), timeout=30)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, UnicodeError) as error:
        raise EncryptedError(f"no server at {address}: {getattr(error, 'strerror', None) or error}") from None
    return connection


def listen(address: str) -> tuple[socket.socket, str]:
    """A listening socket and where it listens: HOST:PORT (port 0 is any free one), or unix:PATH, which must be free. Raises EncryptedError."""
    try:
        if address.startswith("unix:"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(address[5:])
            Path(address[5:]).chmod(0o600)
            server.listen(4)
            return server, address
        host, port = _host(address)
        server = socket.create_server((host, port), backlog=4)
        return server, f"{host}:{server.getsockname()[1]}"
    except (OSError, UnicodeError, OverflowError) as error:
        raise EncryptedError(f"cannot listen at {address}: {getattr(error, 'strerror', None) or error}") from None


def _host(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise EncryptedError(f"{address!r} is not HOST:PORT or unix:PATH")
    return host, int(port)
