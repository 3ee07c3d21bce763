"""Reading postcard bytes strictly: minimal varints, canonical field elements, no trailing bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .errors import VerificationError, require
from .field import EXT_DEGREE, Ext, base_from_bytes

T = TypeVar("T")
DIGEST_LEN = 32


class Reader:
    """A cursor over proof bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(data)
        self.position = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; refuses to run over the end."""
        require(count <= len(self.data) - self.position, "proof bytes end too early")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        """A postcard varint of at most 64 bits; refuses encodings that are longer than necessary."""
        value = 0
        for i in range(10):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                require(i == 0 or byte != 0, "varint is not minimal")
                require(value < 1 << 64, "varint exceeds 64 bits")
                return value
        raise VerificationError("varint exceeds 10 bytes")

    def base(self) -> int:
        """A base-field element: 4 bytes little endian, Montgomery form, < P."""
        return base_from_bytes(self.take(4))

    def ext(self) -> Ext:
        """An extension element: 5 base-field elements."""
        return Ext([self.base() for _ in range(EXT_DEGREE)])

    def digest(self) -> bytes:
        """A BLAKE3 digest: 32 raw bytes."""
        return self.take(DIGEST_LEN)

    def vec(self, item: Callable[[], T]) -> list[T]:
        """A sequence: varint length, then the items. Every item has at least one byte, which bounds the length."""
        count = self.varint()
        require(count <= len(self.data) - self.position, "sequence is longer than the proof")
        return [item() for _ in range(count)]

    def option(self, item: Callable[[], T]) -> T | None:
        """An Option: byte 0 for None, byte 1 and the item for Some."""
        tag = self.take(1)[0]
        require(tag < 2, "option tag is neither 0 nor 1")
        return item() if tag else None

    def end(self) -> None:
        """Nothing may follow."""
        require(self.position == len(self.data), "trailing bytes after the proof")
