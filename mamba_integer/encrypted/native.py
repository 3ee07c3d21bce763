"""The library of encrypted/src/c.rs, a file of its own beside this one (`make encrypted` puts it here), as Python classes. Errors are EncryptedError.

Calls release the interpreter lock. What the operations do is said in encrypted/src/bfv.rs and micro.rs.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mamba_integer.errors import EncryptedError

_NAME = (
    "mamba_integer_encrypted.dll"
    if sys.platform == "win32"
    else "libmamba_integer_encrypted" + (".dylib" if sys.platform == "darwin" else ".so")
)


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("len", ctypes.c_size_t))


@cache
def _library() -> ctypes.CDLL:
    path = Path(os.environ.get("MAMBA_INTEGER_ENCRYPTED", Path(__file__).with_name(_NAME)))
    try:
        library = ctypes.CDLL(os.fspath(path))
    except OSError:
        raise EncryptedError(f"encryption is not built ({path} is not there): make encrypted") from None
    numbers = [ctypes.c_uint64, ctypes.c_uint64]
    library.mie_run.argtypes = [
        ctypes.c_uint32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, *numbers,
        ctypes.POINTER(_Bytes), ctypes.POINTER(ctypes.c_void_p),
    ]  # fmt: skip
    library.mie_run.restype = ctypes.c_int32
    library.mie_free_bytes.argtypes = [_Bytes]
    library.mie_free_bytes.restype = None
    library.mie_free_object.argtypes = [ctypes.c_void_p]
    library.mie_free_object.restype = None
    return library


class _Object:
    """Owns a handle."""

    def __init__(self, handle: int) -> None:
        self._handle, self._library = handle, _library()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.mie_free_object(self._handle)


def _run(operation: int, of: _Object | None = None, data: bytes = b"", a: int = 0, b: int = 0) -> tuple[bytes, int]:
    """(output, handle of a new object or 0). Raises EncryptedError."""
    library = _library()
    output, made = _Bytes(), ctypes.c_void_p()
    handle = of._handle if of is not None else None
    status = library.mie_run(operation, handle, data, len(data), a, b, ctypes.byref(output), ctypes.byref(made))
    try:
        found = ctypes.string_at(output.data, output.len)
    finally:
        library.mie_free_bytes(output)
    if status:
        raise EncryptedError(found.decode("utf-8", "replace"))
    return found, made.value or 0


class BfvClient(_Object):
    """The secret key of the client-aided profile."""

    @classmethod
    def generate(cls) -> BfvClient:
        return cls(_run(0)[1])

    @classmethod
    def from_bytes(cls, data: bytes) -> BfvClient:
        return cls(_run(1, data=data)[1])

    def to_bytes(self) -> bytes:
        return _run(2, self)[0]

    def encrypt(self, x: npt.ArrayLike) -> bytes:
        """x: integers [K], K ≤ 4096, |x| < 2^23."""
        return _run(3, self, np.asarray(x, "<i8").tobytes())[0]

    def decrypt(self, answer: bytes, rows: int, columns: int) -> npt.NDArray[np.int64]:
        """int64 [rows], within ±2^23, of the answer of a matrix [rows, columns]."""
        return np.frombuffer(_run(4, self, answer, rows, columns)[0], "<i8").astype(np.int64)


class BfvMatrix(_Object):
    """An int8 matrix [rows, columns] at the server. For vectors of int8, or of 0 and a single 1 (`choice`)."""

    def __init__(self, W: npt.NDArray[np.int8], choice: bool = False) -> None:
        super().__init__(_run(6 if choice else 5, None, W.astype(np.int8).tobytes(), *W.shape)[1])

    def apply(self, query: bytes) -> bytes:
        return _run(7, self, query)[0]


class MicroClient(_Object):
    """The secret key of the non-interactive profile."""

    @classmethod
    def generate(cls) -> tuple[MicroClient, bytes]:
        """A secret key, and the evaluation keys for the server."""
        keys, handle = _run(10)
        return cls(handle), keys

    @classmethod
    def from_bytes(cls, data: bytes) -> MicroClient:
        return cls(_run(11, data=data)[1])

    def to_bytes(self) -> bytes:
        return _run(12, self)[0]

    def encrypt(self, choice: int, count: int) -> bytes:
        return _run(13, self, b"", choice, count)[0]

    def decrypt(self, answer: bytes, count: int) -> tuple[npt.NDArray[np.int64], float]:
        """Logits int64 [count], and how far from a whole number the worst was before rounding."""
        found = _run(14, self, answer, count)[0]
        return np.frombuffer(found[:-8], "<i8").astype(np.int64), struct.unpack("<d", found[-8:])[0]


class MicroServer(_Object):
    """Evaluation keys and a circuit."""

    def __init__(self, keys: bytes, circuit: str) -> None:
        text = circuit.encode()
        super().__init__(_run(15, None, text + keys, len(text))[1])

    def session(self) -> MicroSession:
        return MicroSession(_run(16, self)[1])


class MicroSession(_Object):
    """The encrypted state of one sequence."""

    def step(self, query: bytes) -> bytes:
        """Feeds an encrypted character; the encrypted logits after it."""
        return _run(17, self, query)[0]
