"""Key files. `keygen` writes two: client.key, which decrypts and never leaves the client, and server.key, which evaluates. Both hold the link key that
authenticates messages, so both are written readable by their owner only.

A file is `mamba-integer key 1`, newline, length of a JSON header (4 bytes, little-endian), header, 32 bytes of link key, the library's key, SHA-256 of all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from mamba_integer.encrypted.micro import MicroModel
from mamba_integer.encrypted.models import Model
from mamba_integer.encrypted.native import BfvClient, MicroClient
from mamba_integer.errors import EncryptedError
from mamba_integer.files import write_atomically

MAGIC = b"mamba-integer key 1\n"
MAX_FILE = 1 << 30
LINK = 32
PROFILES = {"bfv": "client-aided (BFV)", "micro": "non-interactive (TFHE)"}


@dataclass(frozen=True)
class Key:
    """side: "client" or "server". profile: of PROFILES. key_id: names the pair. model: digest, 64 hexadecimal digits. model_name: as it calls itself."""

    side: str
    profile: str
    key_id: str
    model: str
    model_name: str
    link: bytes
    data: bytes

    @property
    def about(self) -> dict[str, str]:
        """What the client greets the server with, and the server expects."""
        return {"profile": self.profile, "key": self.key_id, "model": self.model}

    def write(self, path: Path) -> None:
        """Readable by the owner only, whole or not at all."""
        header = {name: value for name, value in asdict(self).items() if isinstance(value, str)}
        text = json.dumps(header).encode()
        body = MAGIC + len(text).to_bytes(4, "little") + text + self.link + self.data
        write_atomically(path, body + hashlib.sha256(body).digest(), mode=0o600)

    @classmethod
    def read(cls, path: Path, side: str) -> Key:
        """EncryptedError, which names file and cause, for a file that is damaged, of the other side, or that others may read."""
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise EncryptedError("not a regular file")
                if os.name == "posix" and status.st_mode & 0o077:
                    raise EncryptedError("others may read this key: chmod 600")
                data = file.read(MAX_FILE + 1)
            return cls._parse(data, side)
        except (OSError, EncryptedError) as error:
            raise EncryptedError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None

    @classmethod
    def _parse(cls, data: bytes, side: str) -> Key:
        if not data.startswith(MAGIC):
            raise EncryptedError("not a key file")
        body, digest = data[:-32], data[-32:]
        if hashlib.sha256(body).digest() != digest:
            raise EncryptedError("the key file is damaged")
        at = len(MAGIC) + 4
        length = int.from_bytes(body[len(MAGIC) : at], "little")
        try:
            header = json.loads(body[at : at + length])
            key = cls(**header, link=body[at + length : at + length + LINK], data=body[at + length + LINK :])
        except (ValueError, TypeError, RecursionError):
            raise EncryptedError("the key file is damaged") from None
        if len(key.link) != LINK or key.profile not in PROFILES or not all(isinstance(v, str) for v in header.values()):
            raise EncryptedError("the key file is damaged")
        if key.side != side:
            raise EncryptedError(f"this is the {key.side}'s key; the {side}'s is needed")
        return key


def generate(model: Model, folder: Path) -> tuple[Path, Path]:
    """Writes client.key and server.key for a model into a folder (made if it is not there); their paths. Raises EncryptedError, OSError.

    Keys that are already there are not overwritten: whoever loses client.key loses what was encrypted with it.
    """
    paths = folder / "client.key", folder / "server.key"
    for path in paths:
        if path.exists():
            raise EncryptedError(f"{path} is already there; remove it or name another folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    client: MicroClient | BfvClient
    if isinstance(model, MicroModel):
        profile = "micro"
        client, evaluation = MicroClient.generate()
    else:
        profile = "bfv"
        client, evaluation = BfvClient.generate(), b""
    link, name = secrets.token_bytes(LINK), secrets.token_hex(8)
    for side, path, data in zip(("client", "server"), paths, (client.to_bytes(), evaluation), strict=True):
        Key(side, profile, name, model.digest, model.name, link, data).write(path)
    return paths
