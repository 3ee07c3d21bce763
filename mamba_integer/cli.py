"""The command line, `mamba-integer`. Each verb is thin: it parses, calls the function that the Python interface offers too, and prints.

Exit status: 0 done; 1 something that should hold does not (`demo`: engine and reference agree, the proof holds; `replay`: the receipt is true; `verify`: the
proof holds); 2 bad usage or bad input, said in one line on standard error; 130 interrupted. Results go to standard output, with `--json` as one JSON
object; progress and messages go to standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mamba_integer.encrypted import verbs as encrypted
from mamba_integer.errors import ArgumentError, MambaIntegerError, ProofError

if TYPE_CHECKING:
    from mamba_integer.proof import Statement
    from mamba_integer.tokenizer import Tokenizer

PROGRAM = "mamba-integer"
CHECKOUT = Path(__file__).resolve().parents[1]


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, as every other message about a user's mistake."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and gives its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except MambaIntegerError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes standard output at exit.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError:
        return _complain("out of memory")


def _complain(message: str) -> int:
    with suppress(OSError):
        print(f"{PROGRAM}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:
        return _training("mamba_integer.train.pretrain", arguments[1:])
    if arguments[:1] == ["finetune"]:
        return _training("mamba_integer.train.finetune", arguments[1:])
    if arguments[:1] == ["export"]:
        return _training("mamba_integer.export", arguments[1:])
    options = build_parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _training(module: str, arguments: list[str]) -> int:
    """A verb that needs PyTorch; its module parses its own options, with argparse's own exit status 2 for bad usage."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise ArgumentError(f"this needs {package}: pip install 'mamba-integer[train]'")
    status: int | None = import_module(module).main(arguments)
    return status or 0


# ---- options -------------------------------------------------------------------------------------------------------------------------------------


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _unsigned(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) >> bits:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0 to 2^{bits} - 1")
        return int(text)

    return parse


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb but `train`, `finetune` and `export`, which parse their own options."""
    parser = Parser(
        prog=PROGRAM,
        description="A Mamba-style language model whose inference is integers only, the same bits on every machine.",
        epilog=f"example: {PROGRAM} generate --prompt 'Once upon a time'",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=_top)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)

    def verb(
        parent: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, *examples: str
    ) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = parent.add_parser(
            name,
            help=text[0].lower() + text[1:].split(". ")[0].rstrip("."),
            description=text,
            epilog="examples:\n" + "\n".join(f"  {PROGRAM} {e}" for e in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print one JSON object")
        return added

    def model_option(p: argparse.ArgumentParser, default: str = "tinystories") -> None:
        p.add_argument(
            "--model",
            default=default,
            metavar="NAME|PATH",
            help="a shipped model's name or a model file (default: %(default)s)",
        )

    p = verb(
        verbs,
        "generate",
        _generate,
        "Continue a prompt. Prints the prompt and its continuation as it comes.",
        "generate --prompt 'Once upon a time'",
        "generate --prompt 'The little dog' --temperature 0 --max-tokens 50 --json",
        "generate --prompt 'Once upon a time' --seed 7 --receipt story.json",
    )
    model_option(p)
    p.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; - reads it from standard input")
    p.add_argument(
        "--max-tokens", type=_count, default=200, metavar="N", help="stop after N tokens (default: %(default)s)"
    )
    p.add_argument("--temperature", default="0.8", metavar="T", help="0 is greedy, at most 64 (default: %(default)s)")
    p.add_argument(
        "--top-k",
        type=_unsigned(32),
        default=40,
        metavar="K",
        help="choose among the K likeliest tokens; 0 is off (default: %(default)s)",
    )
    p.add_argument(
        "--top-p",
        default="1",
        metavar="P",
        help="choose among the likeliest tokens of total probability P; 1 is off (default: %(default)s)",
    )
    p.add_argument(
        "--seed",
        type=_unsigned(64),
        default=0,
        metavar="N",
        help="the same seed gives the same text on every machine (default: %(default)s)",
    )
    p.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="stop before this text; may be given more than once"
    )
    p.add_argument(
        "--receipt",
        type=Path,
        metavar="FILE",
        help="also write a receipt, which anyone can compute again with `replay`",
    )
    p.add_argument("--logprobs", action="store_true", help="with --json: the log-probability of every token")
    p.add_argument(
        "--threads",
        type=_count,
        default=1,
        metavar="N",
        help="threads that compute; the bits are the same (default: %(default)s)",
    )
    p.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU; the bits are the same (docs/CUDA.md)"
    )

    p = verb(
        verbs,
        "inspect",
        _inspect,
        "Continue a prompt and show the state's inside. How long each head remembers, what saturates, norm shifts, candidates; a page with drawings.",
        "inspect --prompt 'Once upon a time'",
        "inspect --prompt 'The little dog' --temperature 0 --max-tokens 20 -o dog.html",
        "inspect --prompt 'Once upon a time' --json",
    )
    model_option(p)
    p.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; - reads it from standard input")
    p.add_argument("--max-tokens", type=_count, default=40, metavar="N", help="default: %(default)s")
    p.add_argument("--temperature", default="0.8", metavar="T", help="0 is greedy (default: %(default)s)")
    p.add_argument("--top-k", type=_unsigned(32), default=40, metavar="K", help="0 is off (default: %(default)s)")
    p.add_argument("--top-p", default="1", metavar="P", help="1 is off (default: %(default)s)")
    p.add_argument("--seed", type=_unsigned(64), default=0, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--candidates",
        type=_count,
        default=5,
        metavar="N",
        help="likeliest tokens told of each step (default: %(default)s)",
    )
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write an HTML page with drawings")

    p = verb(
        verbs,
        "replay",
        _replay,
        "Check a receipt. The engine computes its generation again; exit status 0 only if every bit is the same, 1 if not, and the reason.",
        "replay story.json",
        "replay story.json --model my-model.gguf --json",
    )
    p.add_argument("receipt", type=Path, metavar="FILE", help="a receipt that `generate --receipt` wrote")
    model_option(p)

    p = verb(
        verbs,
        "prove",
        _prove,
        "Prove a generation. The engine writes; the proof shows that the committed model chose exactly these tokens. It is verified before it is written.",
        "prove --prompt 'Once upon a time' --max-tokens 64 -o story.proof",
        "prove --from-receipt story.json -o story.proof",
        "prove --prompt 'Once upon a time' --max-tokens 256 --estimate",
    )
    model_option(p)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="text to continue; - reads it from standard input")
    what.add_argument(
        "--from-receipt", type=Path, metavar="FILE", help="the generation of this receipt, replayed first"
    )
    p.add_argument(
        "--max-tokens", type=_count, default=64, metavar="N", help="stop after N tokens (default: %(default)s)"
    )
    p.add_argument("--temperature", default="0.8", metavar="T", help="0 is greedy, at most 64 (default: %(default)s)")
    p.add_argument(
        "--top-k",
        type=_unsigned(32),
        default=40,
        metavar="K",
        help="choose among the K likeliest tokens; 0 is off (default: %(default)s)",
    )
    p.add_argument("--top-p", default="1", metavar="P", help="only 1 (off) can be proven")
    p.add_argument("--seed", type=_unsigned(64), default=0, metavar="N", help="default: %(default)s")
    p.add_argument("-o", "--output", type=Path, metavar="FILE", help="proof file to write")
    p.add_argument(
        "--estimate", action="store_true", help="only say what time and memory it would take, and the size of the proof"
    )
    p.add_argument(
        "--segment-steps",
        type=_count,
        default=64,
        metavar="N",
        help="steps proven at a time, 8, 16, 32 ... 512: memory grows with it, the proof shrinks (default: %(default)s)",
    )
    p.add_argument("--threads", type=_unsigned(10), default=0, metavar="N", help="0: all cores (default: %(default)s)")
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep finished segments in FILE.parts until the proof is written, and take up those of an interrupted run",
    )

    p = verb(
        verbs,
        "verify",
        _verify,
        "Verify a proof. Needs no weights, only the commitment of the model that you name; exit status 0 if the proof holds, 1 if not, and the reason.",
        "verify story.proof",
        "verify story.proof --model my-model.card --registration my-model.registration --json",
    )
    p.add_argument(
        "proof",
        type=Path,
        metavar="FILE",
        help="a proof that `prove` wrote, or a registration that `commit-model` wrote",
    )
    p.add_argument(
        "--model",
        default="tinystories",
        metavar="NAME|CARD|COMMITMENT",
        help="a shipped model's name, a card, or a commitment of 64 digits (default: %(default)s)",
    )
    p.add_argument(
        "--registration",
        type=Path,
        metavar="FILE",
        help="the model's registration, checked too (default: NAME.registration beside the card NAME.card, if it is there)",
    )

    p = verb(
        verbs,
        "commit-model",
        _commit_model,
        "Commit to a model. Writes its card, which verifiers need, and its registration: the proof that the weights are within their bounds.",
        "commit-model my-model.gguf -o my-model.card",
    )
    p.add_argument("model", metavar="MODEL", help="a shipped model's name or a model file")
    p.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="card to write; the registration goes beside it",
    )
    p.add_argument("--threads", type=_unsigned(10), default=0, metavar="N", help="0: all cores (default: %(default)s)")

    p = verb(
        verbs,
        "eval",
        _eval,
        "Score a text file. Nats per token, perplexity and bits per byte; documents are separated by lines <|endoftext|>.",
        "eval --data data/tinystories_valid.txt",
        "eval --model my-model.gguf --data stories.txt --json",
    )
    model_option(p)
    p.add_argument("--data", required=True, type=Path, metavar="FILE", help="UTF-8 text")
    p.add_argument("--max-documents", type=_count, metavar="N", help="only the first N documents")

    p = verb(
        verbs,
        "info",
        _info,
        "Describe a model, a proof or a card. Shape, settings, digest, versions and size of a model; what a proof claims (unverified).",
        "info tinystories",
        "info my-model.gguf --bounds",
        "info story.proof",
    )
    p.add_argument(
        "model",
        nargs="?",
        default="tinystories",
        metavar="MODEL|FILE",
        help="a shipped model's name, a model file, a proof or a card (default: %(default)s)",
    )
    p.add_argument(
        "--bounds",
        action="store_true",
        help="also the table of sites: worst-case magnitudes, widths and proof cells per token",
    )

    group = verbs.add_parser(
        "tokenizer", help="train, encode, decode", description="Work with the byte-level BPE tokenizer."
    )
    group.set_defaults(run=lambda _: group.error("one of train, encode, decode is needed"))
    tools = group.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    p = verb(
        tools,
        "train",
        _tokenizer_train,
        "Learn merges from text. Documents are separated by lines <|endoftext|>.",
        "tokenizer train --data data/tinystories_sample.txt --vocab-size 1024 -o my.bpe",
    )
    p.add_argument("--data", required=True, type=Path, metavar="FILE", help="UTF-8 text")
    p.add_argument(
        "--vocab-size",
        required=True,
        type=_count,
        metavar="N",
        help="number of tokens, the 256 bytes and <|endoftext|> included",
    )
    p.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="tokenizer file to write")
    p = verb(
        tools,
        "encode",
        _tokenizer_encode,
        "Text to token ids.",
        "tokenizer encode 'Once upon a time'",
        "tokenizer encode --tokenizer my.bpe - < story.txt",
    )
    p.add_argument("text", metavar="TEXT", help="the text; - reads it from standard input")
    model_option(p)
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer file in place of the model's tokenizer")
    p = verb(tools, "decode", _tokenizer_decode, "Token ids to text.", "tokenizer decode 402 317 12")
    p.add_argument("tokens", nargs="+", type=_unsigned(32), metavar="ID", help="token ids")
    model_option(p)
    p.add_argument("--tokenizer", type=Path, metavar="FILE", help="a tokenizer file in place of the model's tokenizer")

    for name, text in (
        ("train", "train a model (PyTorch: pip install 'mamba-integer[train]')"),
        ("finetune", "tune a trained model to answer requests (PyTorch)"),
        ("export", "turn a training checkpoint into a model file (PyTorch)"),
    ):
        verbs.add_parser(name, help=text, add_help=False)

    p = verb(
        verbs,
        "monitor",
        _monitor,
        "Watch training. Opens a local page with the figures and alerts of a run, live or finished, or of a folder of runs.",
        "monitor runs/mine",
        "monitor runs --port 8080 --no-open",
        "monitor runs/mine --json",
    )
    p.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="RUN",
        help="directory of a run, or of several (default: %(default)s)",
    )
    p.add_argument(
        "--port",
        type=_unsigned(16),
        default=8642,
        metavar="N",
        help="of 127.0.0.1 to listen on; 0: any that is free (default: %(default)s)",
    )
    p.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open the page in a browser (default), or only print its address",
    )

    p = verb(
        verbs,
        "demo",
        _demo,
        "Tell a story, check it, prove it. The C++ engine writes; the NumPy reference computes every logit again; the story is proven and verified.",
        "demo",
        "demo --prompt 'Lily had a red ball' --seed 7",
    )
    model_option(p, "tinystories-3m")
    p.add_argument(
        "--prompt", default="Once upon a time", metavar="TEXT", help="how the story begins (default: %(default)s)"
    )
    p.add_argument(
        "--seed", type=_unsigned(64), default=1, metavar="N", help="another seed, another story (default: %(default)s)"
    )
    p.add_argument(
        "--max-tokens", type=_count, default=200, metavar="N", help="length of the story (default: %(default)s)"
    )
    p.add_argument(
        "--standalone",
        type=Path,
        metavar="FILE",
        help="also run this mamba_infer program, which needs no Python, and compare its bits",
    )
    p.add_argument("--proof", type=Path, metavar="FILE", help="also write the proof of the story there")

    circuits = verbs.add_parser(
        "circuit",
        help="the model as an EZKL circuit: export, report, prove, verify (pip install 'mamba-integer[ezkl]')",
        description="The integer model as a circuit for EZKL, an external tool (docs/CIRCUITS.md). `prove` and `verify` need no EZKL; these do.",
    )
    circuits.set_defaults(run=lambda _: circuits.error("one of export, report, prove, verify is needed"))
    actions = circuits.add_subparsers(title="actions", metavar="ACTION", parser_class=Parser)

    p = verb(
        actions,
        "export",
        _circuit_export,
        "Write a layer, or the whole model, as ONNX. The folder gets the circuit, its input with all witnesses, and the statement.",
        "circuit export --prompt 'Once upon' --layer 0 -o build/layer0",
        "circuit export --model tiny.gguf --prompt 'ab' -o build/tiny",
    )
    model_option(p)
    p.add_argument("--prompt", required=True, metavar="TEXT", help="the tokens to run, the start token first")
    p.add_argument(
        "--layer", type=_unsigned(7), metavar="N", help="this layer only (default: the whole model, tokens to logits)"
    )
    p.add_argument(
        "--table-bits",
        type=_count,
        default=15,
        metavar="N",
        help="width of the limbs that are range-checked; logrows is larger by one at least (default: %(default)s)",
    )
    p.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="folder to write, made if needed")

    p = verb(
        actions,
        "report",
        _circuit_report,
        "Print the sizes of the integer block and of the float block of the same shape. Proves nothing; `bench circuit` does.",
        "circuit report --shape 16,4,4",
    )
    p.add_argument(
        "--shape", default="16,4,4", metavar="D,N,T", help="d_model, d_state and tokens (default: %(default)s)"
    )

    p = verb(
        actions,
        "prove",
        _circuit_prove,
        "Prove an exported circuit with EZKL. Makes a test reference string and keys in the folder: minutes, and gigabytes of memory.",
        "circuit prove build/tiny",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="what `circuit export` wrote")
    p.add_argument(
        "--max-logrows",
        type=_count,
        default=17,
        metavar="N",
        help="more cells than that go into more columns (default: %(default)s)",
    )

    p = verb(
        actions,
        "verify",
        _circuit_verify,
        "Verify an EZKL proof and the public numbers that it rests on. Exit status 0 only if the proof holds, its checks too, and it is of your model.",
        "circuit verify build/tiny --model tiny.gguf",
    )
    p.add_argument("folder", type=Path, metavar="FOLDER", help="what `circuit prove` wrote")
    model_option(p)

    encrypted.add(verbs, verb, Parser)

    group = verbs.add_parser(
        "bench",
        help="measure speed: decode, prefill, tokenizer, train, prove, circuit",
        description="Measure speed. A table, then one JSON line.",
    )
    group.set_defaults(run=lambda _: group.error("one of decode, prefill, tokenizer, prove is needed"))
    benches = group.add_subparsers(title="benches", metavar="BENCH", parser_class=Parser)
    for name, text in (
        ("decode", "Tokens per second one at a time."),
        ("prefill", "Tokens per second of a prompt."),
        ("tokenizer", "Megabytes per second of training and encoding, beside other tokenizers that are installed."),
        ("train", "Tokens per second of training steps, beside transformers and mambapy where they are installed."),
        ("prove", "Proving and verifying generations: seconds, bytes, memory, and where the time goes."),
        (
            "circuit",
            "The integer and the float block in EZKL, and the same shape in our own prover: sizes, keys, CPU time, memory.",
        ),
    ):
        p = verb(benches, name, _bench, text, f"bench {name}", f"bench {name} --json")
        p.set_defaults(bench=name)
        model_option(p)
        p.add_argument(
            "--seconds",
            type=_count,
            default=5,
            metavar="S",
            help="time to spend on each measurement, about (default: %(default)s)",
        )
        if name == "tokenizer":
            p.add_argument(
                "--data", type=Path, action="append", metavar="FILE", help="UTF-8 text to encode and to learn from"
            )
            p.add_argument("--peers", metavar="NAME,NAME", help="only these others (default: all that are installed)")
            p.add_argument(
                "--vocabulary",
                type=Path,
                metavar="FILE",
                help="a .tiktoken file to encode with in place of what the text gives",
            )
            for flag, purpose in (("--vocab-size", "encode with"), ("--train-vocab-size", "learn")):
                p.add_argument(
                    flag, type=_count, default=4096, metavar="N", help=f"tokens to {purpose} (default: %(default)s)"
                )
        if name == "train":
            p.add_argument("--threads", type=_count, default=1, metavar="N", help="default: %(default)s")
            p.add_argument(
                "--shape",
                choices=("small", "shipped", "ablation"),
                help="d_model 256, 6 layers, vocabulary 4,096 (default); or 192, 4 and 2,048; or 128, 4 and 2,048",
            )
        if name in ("decode", "prefill"):
            p.add_argument("--threads", type=_count, default=1, metavar="N", help="default: %(default)s")
            p.add_argument(
                "--shape",
                choices=("small", "130m"),
                help="random models of this shape, int8 and ternary, in place of --model: d_model 256, 6 layers, vocabulary 4,096; "
                "or 768, 24 and 50,280",
            )
            p.add_argument(
                "--peers",
                action="store_true",
                help="with --shape: by turns with llama.cpp's Mamba of the same shape (needs the packages llama-cpp-python and gguf)",
            )
        if name == "circuit":
            p.add_argument(
                "--cells",
                default="sizes,16,32,64-integer,64-ours",
                metavar="NAME,NAME",
                help="sizes: no proofs; 16, 32, 64 (d_model): proofs by EZKL of both blocks, and by our prover; 32-integer, 32-float, 32-ours: "
                "one of them (default: %(default)s)",
            )
            p.add_argument(
                "--cache",
                type=Path,
                default=Path("build/circuits"),
                metavar="FOLDER",
                help="what is measured is kept there and not measured again (default: %(default)s)",
            )
        if name == "prove":
            p.add_argument(
                "--tokens", default="16,64,256", metavar="N,N", help="lengths of the generations (default: %(default)s)"
            )
            p.add_argument("--threads", type=_unsigned(10), default=0, metavar="N", help="0: all cores")
    return parser


# ---- verbs ---------------------------------------------------------------------------------------------------------------------------------------


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_table(rows: Sequence[tuple[str, object]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _text_argument(text: str) -> str:
    """An argument of text; - stands for standard input. ArgumentError if it is not UTF-8."""
    if text == "-":
        raw = sys.stdin.buffer.read()
    else:
        raw = text.encode("utf-8", errors="surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"the text is not UTF-8 (byte {error.start})") from None


def _top(options: argparse.Namespace) -> int:
    if not options.version:
        raise ArgumentError(f"a verb is needed (see {PROGRAM} --help)")
    from mamba_integer import _native

    print(f"{PROGRAM} {_native.__version__}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    from mamba_integer import receipt
    from mamba_integer.engine import Model

    prompt = _text_argument(options.prompt)
    model = Model.load(options.model)
    generation = model.generate(
        prompt,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        stop=options.stop,
        logprobs=options.logprobs,
        threads=options.threads,
        device=options.device,
    )
    if options.receipt is not None:  # said before the work rather than after it
        receipt.check_stop(generation.stop)
        if not options.receipt.parent.is_dir() or options.receipt.is_dir():
            raise ArgumentError(f"{options.receipt}: no file can be written there")
    if options.json:
        pieces = list(generation)
    else:
        print(prompt, end="", flush=True)
        for piece in generation:
            print(piece.text, end="", flush=True)
        print()
    if options.receipt is not None:
        receipt.write(options.receipt, receipt.make(model, generation))
    if options.json:
        out = {**generation.to_json(), "model_digest": model.digest}
        if options.logprobs:
            out["logprobs"] = [piece.logprob for piece in pieces]
        _print_json(out)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from mamba_integer.engine import Model
    from mamba_integer.files import write_atomically
    from mamba_integer.inspection import inspect, page

    if options.output is not None and (not options.output.parent.is_dir() or options.output.is_dir()):
        raise ArgumentError(f"{options.output}: no file can be written there")
    found = inspect(
        Model.load(options.model),
        _text_argument(options.prompt),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        candidates=options.candidates,
    )
    if options.output is not None:
        write_atomically(options.output, page(found).encode())
    if options.json:
        _print_json(found.to_json())
        return 0
    decode = found.model.tokenizer.decode
    print(f"{_text_argument(options.prompt)}{found.text}\n\ncandidates before each token, in percent; * was chosen")
    for token, step in zip(found.tokens, found.candidates, strict=True):
        told = "  ".join(f"{'*' if t == token else ''}{decode([t])!r} {100 * p:.1f}" for t, p in step)
        print(f"{decode([token])!r:>14}  {told}")
    print("\nhalf-life of each head in tokens: median (10th to 90th percentile), shortest first")
    heads = sorted(found.heads(), key=lambda h: (h["layer"], h["half_life"]))
    for layer in range(found.half_life.shape[1]):
        told = "  ".join(
            f"{h['half_life']:.3g} ({h['half_life_p10']:.3g}-{h['half_life_p90']:.3g})"
            for h in heads
            if h["layer"] == layer
        )
        print(f"layer {layer}  {told}")
    print("\nnorm shifts: mean (least to most)")
    for n in found.norms():
        print(f"layer {n['layer']} {n['norm']}  {n['shift_mean']:.2f} ({n['shift_min']}-{n['shift_max']})")
    print("\nsaturated values in percent")
    for (layer, site), (count, values) in sorted(found.saturated.items()):
        if count:
            print(f"layer {layer} {site:<9} {100 * count / values:.3f} ({count:,} of {values:,})")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from mamba_integer.engine import Model
    from mamba_integer.receipt import read, replay

    receipt = read(options.receipt)
    result = replay(receipt, Model.load(options.model))
    if options.json:
        _print_json(asdict(result))
    elif result.valid:
        positions = len(receipt.prompt_tokens) + len(receipt.tokens) - 1
        print(f"valid: {len(receipt.tokens)} tokens, and all logits of {positions} positions, are the same bits")
        _print_table([("model", f"{receipt.model_name} {receipt.model_digest}"), ("receipt", receipt.digest)])
    else:
        print(f"NOT VALID: {result.reason}")
    return 0 if result.valid else 1


def _prove(options: argparse.Namespace) -> int:
    from mamba_integer import proof
    from mamba_integer.engine import Model
    from mamba_integer.receipt import read

    if options.output is None and not options.estimate:
        raise ArgumentError("-o FILE is needed (or --estimate)")
    if options.output is not None and (not options.output.parent.is_dir() or options.output.is_dir()):
        raise ArgumentError(f"{options.output}: no file can be written there")
    if options.top_p not in ("1", "1.0"):
        raise ArgumentError("--top-p: only 1 (off) can be proven; use --temperature and --top-k")
    model = Model.load(options.model)
    what = _text_argument(options.prompt) if options.prompt is not None else read(options.from_receipt)
    generation = proof.generate(
        model,
        what,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    proof.provable(generation)
    prover = proof.Prover(model, threads=options.threads)
    if options.estimate:
        estimate = prover.estimate(generation, options.segment_steps)
        if options.json:
            _print_json(estimate)
        else:
            _print_table(
                [
                    ("tokens", len(generation.tokens)),
                    ("steps of each segment", ", ".join(str(1 << log) for log in estimate["segments"])),
                    ("seconds, about", f"{estimate['seconds']:.1f}"),
                    ("memory, about", f"{estimate['memory_bytes'] / 2**30:.1f} GiB"),
                    ("proof, about", f"{estimate['proof_bytes']:,} bytes"),
                    ("security", f"{estimate['security_bits']:.1f} bits"),
                ]
            )
        return 0
    parts = Path(f"{options.output}.parts") if options.resume else None
    bar = _Bar(sys.stderr)
    try:
        made = prover.prove(generation, segment_steps=options.segment_steps, parts=parts, progress=bar)
    finally:
        bar.finish()
    made.write(options.output)
    if parts is not None:
        proof.remove_parts(parts)
    statement = made.statement
    out = {
        "proof": os.fspath(options.output),
        "bytes": len(made.data),
        "text": statement.text,
        "tokens": list(statement.tokens),
        "prompt_tokens": list(statement.prompt_tokens),
        "commitment": statement.commitment,
        "segments": list(statement.segments),
        **made.report,
    }
    if options.json:
        _print_json(out)
        return 0
    print(f"{statement.prompt}{statement.text}\n")
    seconds = made.report["seconds"]
    _print_table(
        [
            ("proof", f"{options.output}, {len(made.data):,} bytes, verified in {1000 * seconds['verify']:.0f} ms"),
            ("proven in", f"{seconds['total']:.1f} s, {made.report['seconds_per_token']:.3f} s a token"),
            ("memory", f"{(made.report['memory_peak_bytes'] or 0) / 2**30:.1f} GiB at most"),
            ("security", f"{made.report['security_bits']} bits; not zero-knowledge"),
            ("model", f"{made.card.name} {statement.commitment}"),
        ]
    )
    return 0


class _Bar:
    """A bar of segments on a terminal; one line a segment where it is none."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._began = time.monotonic()
        self._done, self._all = 0, 0

    def __call__(self, event: dict[str, Any] | None) -> None:
        if event is not None:
            self._done, self._all = event["segment"] + 1, event["segments"]
        seconds = time.monotonic() - self._began
        if self._terminal:
            filled = 30 * self._done // self._all if self._all else 0
            count = f"{self._done}/{self._all} segments" if self._all else "proving"
            print(
                f"\r[{'#' * filled}{'.' * (30 - filled)}] {count}, {seconds:.0f} s ",
                end="",
                file=self._stream,
                flush=True,
            )
        elif event is not None:
            print(f"segment {self._done} of {self._all}, {seconds:.1f} s", file=self._stream, flush=True)

    def finish(self) -> None:
        if self._terminal:
            print(file=self._stream)


def _verify(options: argparse.Namespace) -> int:
    from mamba_integer.proof import verify, verify_registration

    if _begins_with(options.proof, b"MI-REGIS"):
        try:
            verify_registration(options.proof.read_bytes(), options.model)
            reason = ""
        except ProofError as error:
            reason = str(error)
        if options.json:
            _print_json({"valid": not reason, "reason": reason})
        else:
            print(
                f"NOT VALID: {reason}"
                if reason
                else "valid: the weights behind this commitment are within their bounds"
            )
        return 1 if reason else 0
    result = verify(options.proof, options.model, options.registration)
    if options.json:
        _print_json(result.to_json())
    elif result.valid:
        s = result.statement
        assert s is not None
        print(
            f"valid: the model {result.model!r} chose these {len(s.tokens)} tokens\n\n{_visible(s.prompt + s.text)}\n"
        )
        _print_table(
            [
                ("commitment", s.commitment),
                ("sampling", _sampling(s)),
                ("security", f"{result.security_bits} bits"),
                (
                    "registration",
                    "checked"
                    if result.registration
                    else "not checked: nothing shows that the weights are within bounds",
                ),
                ("verified in", f"{1000 * result.seconds:.0f} ms"),
            ]
        )
    else:
        print(f"NOT VALID: {result.reason}")
    return 0 if result.valid else 1


def _visible(text: str, *, newlines: bool = True) -> str:
    """Text from somebody's file without characters that could command a terminal; with `newlines` line breaks and tabs stay."""
    kept = "\n\t" if newlines else ""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def _sampling(statement: Statement) -> str:
    s = statement.sampling
    if s.temperature == 0:
        return "greedy"
    top_k = f"top-k {s.top_k}" if s.top_k else "all tokens"
    return f"temperature {s.temperature / 65536:g}, {top_k}, seed {s.seed}"


def _commit_model(options: argparse.Namespace) -> int:
    from mamba_integer.files import write_atomically
    from mamba_integer.proof import Prover

    if not options.output.parent.is_dir() or options.output.is_dir():
        raise ArgumentError(f"{options.output}: no file can be written there")
    prover = Prover(options.model, threads=options.threads, published=False)
    registration = options.output.with_suffix(".registration")
    registered = prover.register()
    prover.card.write(options.output)
    write_atomically(registration, registered)
    out = {
        "card": os.fspath(options.output),
        "registration": os.fspath(registration),
        "registration_bytes": len(registered),
        "name": prover.card.name,
        "model_digest": prover.card.model_digest,
        "commitment": prover.card.commitment,
    }
    if options.json:
        _print_json(out)
    else:
        _print_table([(name.replace("_", " "), value) for name, value in out.items()])
    return 0


def _eval(options: argparse.Namespace) -> int:
    from mamba_integer.engine import Model
    from mamba_integer.evaluate import evaluate

    model = Model.load(options.model)
    result = evaluate(model, options.data, max_documents=options.max_documents)
    if options.json:
        _print_json({**result.to_json(), "model_digest": model.digest})
        return 0
    _print_table(
        [
            ("nats per token", f"{result.nats_per_token:.4f}"),
            ("perplexity", f"{result.perplexity:.3f}"),
            ("bits per byte", f"{result.bits_per_byte:.4f}"),
            ("tokens", result.tokens),
            ("bytes", result.bytes),
            ("documents", result.documents),
        ]
    )
    return 0


def _info(options: argparse.Namespace) -> int:
    from mamba_integer import _native, bounds
    from mamba_integer.engine import Model, find_model
    from mamba_integer.model_file import FORMAT_VERSION, SPEC_VERSION, read_model

    if Path(options.model).suffix in (".proof", ".card") or _begins_with(options.model, b"MI-PROOF"):
        return _info_of_proof(options)
    path = find_model(options.model)
    model, weights = Model.load(path), read_model(path)
    out: dict[str, Any] = {
        "name": model.name,
        "file": os.fspath(path),
        "bytes": path.stat().st_size,
        "model_digest": model.digest,
        "tokenizer_digest": model.tokenizer.digest,
        "format_version": FORMAT_VERSION,
        "spec_version": SPEC_VERSION,
        "engine_version": _native.engine_version,
        "parameters": sum(tensor.size for tensor in weights.tensors.values()),
        **asdict(model.config),
        "norm_scale": weights.config.norm_scale,
        **weights.about,
    }
    if options.json:
        if options.bounds:
            out["bounds"] = [{**asdict(site), "cells": site.cells} for site in bounds.sites(weights)]
        _print_json(out)
        return 0
    _print_table([(name.replace("_", " "), value) for name, value in out.items()])
    if options.bounds:
        print(f"\n{bounds.table(weights)}")
    return 0


def _begins_with(path: str | Path, magic: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _info_of_proof(options: argparse.Namespace) -> int:
    """What a proof or a card says, unverified."""
    from mamba_integer.card import Card, known_as
    from mamba_integer.proof import Proof

    if options.model.endswith(".card"):
        card = Card.read(options.model)
        content = {key: value for key, value in card.content.items() if key != "tokenizer"}
        out: dict[str, Any] = {"file": options.model, "commitment": card.commitment, **content}
        rows = {**out, **content["shape"], "name": _visible(card.name, newlines=False)}
        rows.pop("shape")
    else:
        proof = Proof.read(options.model)
        s, card = proof.statement, proof.card
        out = {
            "file": options.model,
            "bytes": len(proof.data),
            "protocol": s.protocol,
            "spec": s.spec,
            "model": card.name,
            "model_digest": card.model_digest,
            "commitment": s.commitment,
            "shipped_as": known_as(s.commitment),
            "prompt": s.prompt,
            "text": s.text,
            "prompt_tokens": list(s.prompt_tokens),
            "tokens": list(s.tokens),
            "finish": s.finish,
            "sampling": {"temperature": s.sampling.temperature, "top_k": s.sampling.top_k, "seed": s.sampling.seed},
            "segments": [1 << log for log in s.segments],
        }
        rows = {
            **out,
            **{name: _visible(out[name], newlines=False) for name in ("model", "prompt", "text")},
            "shipped_as": ", ".join(out["shipped_as"]) or "no shipped model",
            "prompt_tokens": len(s.prompt_tokens),
            "tokens": len(s.tokens),
            "sampling": _sampling(s),
            "segments": ", ".join(map(str, out["segments"])) + " steps",
            "verified": f"no: this is what it claims (mamba-integer verify {options.model})",
        }
    if options.json:
        _print_json(out)
    else:
        _print_table([(name.replace("_", " "), value) for name, value in rows.items()])
    return 0


def _tokenizer_of(options: argparse.Namespace) -> Tokenizer:
    from mamba_integer.engine import Model
    from mamba_integer.tokenizer import Tokenizer

    return Tokenizer.load(options.tokenizer) if options.tokenizer else Model.load(options.model).tokenizer


def _tokenizer_train(options: argparse.Namespace) -> int:
    from mamba_integer.tokenizer import Tokenizer, documents, read_text

    texts = documents(read_text(options.data))
    tokenizer = Tokenizer.train(texts, options.vocab_size)
    tokenizer.save(options.output)
    out = {
        "file": os.fspath(options.output),
        "vocab_size": tokenizer.vocab_size,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "tokenizer_digest": tokenizer.digest,
    }
    if options.json:
        _print_json(out)
    else:
        print(f"{out['file']}: {out['vocab_size']} tokens from {out['documents']} documents, {out['bytes']} bytes")
    return 0


def _tokenizer_encode(options: argparse.Namespace) -> int:
    tokens = _tokenizer_of(options).encode(_text_argument(options.text))
    if options.json:
        _print_json({"tokens": tokens})
    else:
        print(*tokens)
    return 0


def _tokenizer_decode(options: argparse.Namespace) -> int:
    text = _tokenizer_of(options).decode(options.tokens)
    if options.json:
        _print_json({"text": text})
    else:
        print(text)
    return 0


def _monitor(options: argparse.Namespace) -> int:
    from mamba_integer.train.monitor.runs import Runs
    from mamba_integer.train.monitor.server import MonitorServer

    runs = Runs(options.folder)
    if not runs.all():
        raise ArgumentError(f"{options.folder} holds no run (a run has a metrics.jsonl, which `train` writes)")
    if options.json:
        _print_json({"runs": [run.overview() for run in runs.all().values()]})
        return 0
    with MonitorServer(runs, options.port) as server:
        print(f"watching {options.folder} at {server.url} (Ctrl-C ends it)", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(server.url)
        server.serve_forever()
    return 0


def _demo(options: argparse.Namespace) -> int:
    from mamba_integer.demo import demo

    return demo(
        options.model,
        options.prompt,
        options.seed,
        options.max_tokens,
        options.standalone,
        options.proof,
        as_json=options.json,
    )


def _circuit_export(options: argparse.Namespace) -> int:
    from mamba_integer.circuit import ezkl
    from mamba_integer.circuit.block import of_tokens
    from mamba_integer.engine import Model, find_model
    from mamba_integer.model_file import read_model

    path = find_model(options.model)
    tokens = Model.load(path).encode(_text_argument(options.prompt))
    graph, about = of_tokens(read_model(path), tokens, options.layer, options.table_bits)
    statement = ezkl.export(graph, options.output, **about)
    out = {
        "folder": os.fspath(options.output),
        **{name: statement[name] for name in (*about, "table_bits", "circuit")},
        "roundings": graph.roundings,
        "limbs": graph.limbs,
    }
    if options.json:
        _print_json(out)
    else:
        _print_table([(name.replace("_", " "), value) for name, value in out.items()])
    return 0


def _circuit_report(options: argparse.Namespace) -> int:
    import tempfile

    from mamba_integer.circuit import report

    shape = report.parse(options.shape)
    with tempfile.TemporaryDirectory() as folder:
        out = report.side_by_side(shape, folder)
    if options.json:
        _print_json(out)
        return 0
    rows = [(name.replace("_", " "), *(out[kind][name] for kind in ("integer", "float"))) for name in report.ROWS]
    width = max(len(str(row[1])) for row in rows)
    _print_table([("", f"{'integer':<{width}}  float"), *((name, f"{a!s:<{width}}  {b}") for name, a, b in rows)])
    print(f"\nfloat has {out['rows_ratio']} times the rows")
    return 0


def _circuit_prove(options: argparse.Namespace) -> int:
    from mamba_integer.circuit import ezkl

    used = ezkl.prove(options.folder, options.max_logrows)
    out: dict[str, Any] = {
        "proof": os.fspath(options.folder / ezkl.PROOF),
        "logrows": ezkl.read_settings(options.folder)["run_args"]["logrows"],
        **{f"{name}_cpu_seconds": round(usage.cpu, 2) for name, usage in used.items()},
        "memory_peak_bytes": max(usage.memory for usage in used.values()),
    }
    if options.json:
        _print_json(out)
    else:
        _print_table([(name.replace("_", " "), value) for name, value in out.items()])
    return 0


def _circuit_verify(options: argparse.Namespace) -> int:
    from mamba_integer.circuit import ezkl
    from mamba_integer.circuit.block import digest_of
    from mamba_integer.engine import find_model
    from mamba_integer.model_file import read_model

    statement = ezkl.read_statement(options.folder)
    result = ezkl.verify(options.folder, digest_of(read_model(find_model(options.model)), statement))
    if options.json:
        _print_json({"valid": result.valid, "reason": result.reason})
    elif result.valid:
        part = "the whole model" if statement["layer"] is None else f"layer {statement['layer']}"
        print(
            f"valid: {part} of {_visible(str(statement['model']))} on {statement['tokens']} tokens gives the outputs that the statement says"
        )
    else:
        print(f"NOT VALID: {result.reason}")
    return 0 if result.valid else 1


def _bench(options: argparse.Namespace) -> int:
    folder = CHECKOUT / "bench"
    if not (folder / "__init__.py").is_file():
        raise ArgumentError("the benches are part of a checkout of the project, not of an installed package")
    if os.fspath(CHECKOUT) not in sys.path:
        sys.path.insert(0, os.fspath(CHECKOUT))
    run: Callable[[argparse.Namespace], dict[str, Any]] = import_module(f"bench.{options.bench}").run
    result = run(options)
    more = result.pop("rows", [])
    if not options.json and result["peers"]:
        rows = [
            (f"{peer}: {what}", f"{rate:,} {result['unit']}")
            for peer, rates in result["peers"].items()
            for what, rate in rates.items()
        ]
        _print_table([*rows, *more])
    _print_json(result)
    return 0
