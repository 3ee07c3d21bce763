"""What torchrun starts in every process: `-m mamba_integer.train …` is `mamba-integer train …`.

`-m mamba_integer.train finetune …` is `mamba-integer finetune …`.
"""

import os
import sys

from mamba_integer.cli import main


def run(arguments: list[str]) -> None:
    """Ends the process without taking the interpreter down.

    Gloo's threads outlive their process group for a moment, and one that lets go of a tensor while the interpreter ends aborts the process
    ("terminate called without an active exception", seen with PyTorch 2.15). Everything is written and closed when `main` returns.
    """
    status = main(arguments if arguments[:1] == ["finetune"] else ["train", *arguments])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])
