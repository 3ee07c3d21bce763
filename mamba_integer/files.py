"""Writing files whole. It knows nothing of what they hold."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes, mode: int = 0o666) -> None:
    """Writes and fsyncs a temporary file in the same folder, then renames it to `path`: until then, and if anything fails, what was there stays.

    `mode`: the permissions from the first byte on, less the process's umask.
    A link is followed; what is neither a regular file nor free is refused, so that a rename never takes the place of a device. Raises OSError.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Exclusive: in a shared folder nobody can have put a link there.
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
