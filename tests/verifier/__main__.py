"""`python -m tests.verifier FILE --model CARD_OR_COMMITMENT`: is this proof, or this registration, true of this model?"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from .errors import VerificationError
from .generation import verify
from .registration import REGISTRATION_MAGIC, verify_registration
from .statement import read_card


def commitment_of(model: str) -> str:
    """64 hexadecimal digits as they are; anything else is the path of a card."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", model):
        return model.lower()
    return read_card(Path(model).read_bytes()).commitment.hex()


def main(arguments: list[str] | None = None) -> int:
    """0 for an accepted proof, 1 for a rejected one, 2 for a file that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m tests.verifier", description=__doc__)
    parser.add_argument("file", type=Path, help="the proof or registration")
    parser.add_argument("--model", required=True, help="the model's card, or its commitment in hexadecimal")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        data, commitment = options.file.read_bytes(), commitment_of(options.model)
        if data.startswith(REGISTRATION_MAGIC):
            card = verify_registration(data, commitment)
            print(f"accepted: the registration of {card.name}, {time.perf_counter() - start:.1f} s")
            return 0
        report = verify(data, commitment)
    except VerificationError as error:
        print(f"rejected: {error}")
        return 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    statement = report.statement
    print(
        f"accepted: {report.card.name}, {len(statement.tokens)} tokens chosen, {report.soundness_bits:.1f} bits, "
        f"{time.perf_counter() - start:.1f} s"
    )
    print(f"prompt: {statement.prompt!r}")
    print(f"text: {statement.text!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
