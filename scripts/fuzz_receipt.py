#!/usr/bin/env python3
"""Fuzzes the reader of receipts with atheris, libFuzzer for Python: fuzz_receipt.py CORPUS [libFuzzer options]. Needs `pip install atheris`.

A file is refused with a ReceiptError or read; what was read is written and read again as the same receipt. Nothing else may come of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["json", "mamba_integer"]):
    import json.decoder
    import json.scanner

    from mamba_integer import receipt
    from mamba_integer.errors import ReceiptError

# The scanners of the json module in Python, which the fuzzer sees into, for those in C.
json.scanner.make_scanner = json.scanner.py_make_scanner  # type: ignore[attr-defined, assignment]
json.decoder.scanner.make_scanner = json.scanner.py_make_scanner  # type: ignore[attr-defined]
json.decoder.scanstring = json.decoder.py_scanstring  # type: ignore[attr-defined]

MESSAGE = 400  # characters: a message stays one short line whatever the file holds


def read(data: bytes) -> None:
    try:
        found = receipt.Receipt.from_bytes(data)
    except ReceiptError as error:
        if len(str(error)) > MESSAGE or "\n" in str(error):
            raise AssertionError("a message that is no short line") from error
        return
    again = receipt.Receipt.from_bytes(found.to_bytes())
    assert again == found
    assert again.stated_digest == found.digest


def resealed(data: bytes, size: int, seed: int) -> bytes:
    """Half of the time, what libFuzzer makes of a file; otherwise one value of it replaced by another value of it, so that JSON stays JSON."""
    try:
        content = json.loads(data)
        names = sorted(content) if isinstance(content, dict) else []
        content[names[seed % len(names)]] = content[names[seed // 7 % len(names)]]
    except (ValueError, RecursionError, ZeroDivisionError):
        return atheris.Mutate(data, size)
    return json.dumps(content).encode()[:size] if seed % 2 else atheris.Mutate(data, size)


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    golden = Path(__file__).resolve().parents[1] / "tests/receipt.json"
    (corpus / "golden").write_bytes(golden.read_bytes())
    atheris.Setup(sys.argv, read, custom_mutator=resealed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
