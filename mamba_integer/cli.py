"""The command line, `mamba-integer`. Each verb is thin: it parses, calls the function that the Python interface offers too, and prints.

Exit status: 0 done; 1 something that should hold does not (`demo`: engine and reference agree; `replay`: the receipt is true); 2 bad usage or bad input,
said in one line on standard error; 130 interrupted. Results go to standard output, with `--json` as one JSON object; progress and messages go to
standard error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mamba_integer.errors import ArgumentError, MambaIntegerError

if TYPE_CHECKING:
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
    """The parser of every verb but `train` and `export`, which parse their own options."""
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

    def model_option(p: argparse.ArgumentParser) -> None:
        p.add_argument(
            "--model",
            default="tinystories",
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
        help="accepted for later releases: this engine computes on one thread",
    )
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: not in this build")

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
        "Describe a model. Shape, settings, digest, versions and size of a shipped model or model file.",
        "info tinystories",
        "info my-model.gguf --bounds",
    )
    p.add_argument(
        "model",
        nargs="?",
        default="tinystories",
        metavar="MODEL",
        help="a shipped model's name or a model file (default: %(default)s)",
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
        ("export", "turn a training checkpoint into a model file (PyTorch)"),
    ):
        verbs.add_parser(name, help=text, add_help=False)

    p = verb(
        verbs,
        "demo",
        _demo,
        "Tell a story and check it. The C++ engine writes; then the NumPy reference computes every logit again and the two are compared bit for bit.",
        "demo",
        "demo --prompt 'Lily had a red ball' --seed 7",
    )
    model_option(p)
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

    group = verbs.add_parser(
        "bench",
        help="measure speed: decode, prefill, tokenizer",
        description="Measure speed. A table, then one JSON line.",
    )
    group.set_defaults(run=lambda _: group.error("one of decode, prefill, tokenizer is needed"))
    benches = group.add_subparsers(title="benches", metavar="BENCH", parser_class=Parser)
    for name, text in (
        ("decode", "Tokens per second one at a time."),
        ("prefill", "Tokens per second of a prompt."),
        ("tokenizer", "Megabytes per second of training, encoding and decoding."),
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

    if options.device == "cuda":
        raise ArgumentError("--device cuda: this build has no CUDA engine; use --device cpu")
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


def _demo(options: argparse.Namespace) -> int:
    from mamba_integer.demo import demo

    return demo(
        options.model, options.prompt, options.seed, options.max_tokens, options.standalone, as_json=options.json
    )


def _bench(options: argparse.Namespace) -> int:
    folder = CHECKOUT / "bench"
    if not (folder / "__init__.py").is_file():
        raise ArgumentError("the benches are part of a checkout of the project, not of an installed package")
    if os.fspath(CHECKOUT) not in sys.path:
        sys.path.insert(0, os.fspath(CHECKOUT))
    run: Callable[[argparse.Namespace], dict[str, Any]] = import_module(f"bench.{options.bench}").run
    result = run(options)
    if not options.json:
        rows = [
            (f"{peer}: {what}", f"{rate:,} {result['unit']}")
            for peer, rates in result["peers"].items()
            for what, rate in rates.items()
        ]
        _print_table(rows)
    _print_json(result)
    return 0
