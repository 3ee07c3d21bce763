"""`mamba-integer encrypted keygen|serve|generate|train`: options and output; the work is done by the modules beside this one."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mamba_integer.errors import ArgumentError, EncryptedError

ADDRESS = "127.0.0.1:7177"
Verb = Callable[..., argparse.ArgumentParser]


def add(verbs: Any, verb: Verb, parser: type[argparse.ArgumentParser]) -> None:
    """Adds the group `encrypted` to the command line's verbs; `verb` adds one (parent, name, function, text, examples)."""
    group = verbs.add_parser(
        "encrypted",
        help="inference on ciphertexts: keygen, serve, generate, train",
        description="Generate text with a model at a server that sees neither prompt nor text nor logits (docs/ENCRYPTED.md).",
    )
    group.set_defaults(run=lambda _: group.error("one of keygen, serve, generate, train is needed"))
    tools = group.add_subparsers(title="verbs", metavar="VERB", parser_class=parser)
    model = {
        "metavar": "NAME|PATH",
        "help": "a shipped model's name or a model file; a micro model (.json) is served without interaction",
    }

    p = verb(
        tools,
        "keygen",
        _keygen,
        "Make keys for a model. client.key decrypts and stays with the client; server.key is for the server. Both are readable by you only.",
        "encrypted keygen --model micro -o keys",
        "encrypted keygen --model tinystories -o keys",
    )
    p.add_argument("--model", required=True, **model)
    p.add_argument(
        "-o", "--output", required=True, type=Path, metavar="FOLDER", help="where client.key and server.key are written"
    )

    p = verb(
        tools,
        "serve",
        _serve,
        "Serve a model on ciphertexts. Needs server.key; answers until interrupted.",
        "encrypted serve --model micro --key keys/server.key",
        "encrypted serve --model tinystories --key keys/server.key --listen unix:/tmp/mamba.sock",
    )
    p.add_argument("--model", required=True, **model)
    p.add_argument("--key", required=True, type=Path, metavar="FILE", help="server.key")
    p.add_argument(
        "--listen",
        default=ADDRESS,
        metavar="ADDRESS",
        help="HOST:PORT, port 0 for a free one, or unix:PATH (default: %(default)s)",
    )
    p.add_argument("--once", action="store_true", help="serve one client, then end")

    p = verb(
        tools,
        "generate",
        _generate,
        "Continue a prompt with a server's model. The prompt is encrypted here, logits are decrypted here, and tokens are chosen here.",
        "encrypted generate --key keys/client.key --prompt 'once upon a '",
        "encrypted generate --key keys/client.key --prompt 'Once upon a time' --max-tokens 8 --check tinystories --json",
    )
    p.add_argument("--key", required=True, type=Path, metavar="FILE", help="client.key")
    p.add_argument("--server", default=ADDRESS, metavar="ADDRESS", help="HOST:PORT or unix:PATH (default: %(default)s)")
    p.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue")
    p.add_argument(
        "--max-tokens",
        type=int,
        default=32,
        metavar="N",
        help="tokens, or characters of a micro model (default: %(default)s)",
    )
    p.add_argument("--temperature", default="0.8", metavar="T", help="0 is greedy (default: %(default)s)")
    p.add_argument("--top-k", type=int, default=40, metavar="K", help="0 is off (default: %(default)s)")
    p.add_argument("--top-p", default="1", metavar="P", help="1 is off (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--check",
        metavar="NAME|PATH",
        help="also run this plain model and compare every logit; exit status 1 if one differs",
    )

    p = verb(
        tools,
        "train",
        _train,
        "Train a micro model. Sentences of a text, in small letters, character by character; needs PyTorch.",
        "encrypted train --config configs/micro.json --data stories.txt -o micro.json",
    )
    p.add_argument("--config", required=True, type=Path, metavar="FILE", help="shape, JSON")
    p.add_argument("--data", required=True, type=Path, metavar="FILE", help="UTF-8 text")
    p.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="model file to write")
    p.add_argument("--steps", type=int, default=4500, metavar="N", help="default: %(default)s")
    p.add_argument("--batch", type=int, default=96, metavar="N", help="rows a step (default: %(default)s)")
    p.add_argument("--length", type=int, default=64, metavar="N", help="characters a row (default: %(default)s)")
    p.add_argument("--lr", type=float, default=1.5e-2, metavar="R", help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--every", type=int, default=500, metavar="N", help="steps between lines of progress (default: %(default)s)"
    )
    p.add_argument("--name", default="micro", metavar="NAME", help="the model's name (default: %(default)s)")
    p.add_argument("--about", default="", metavar="TEXT", help="what the model is")


def _tell(options: argparse.Namespace, out: dict[str, Any], rows: list[tuple[str, object]]) -> None:
    if options.json:
        print(json.dumps(out, ensure_ascii=False))
        return
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _keygen(options: argparse.Namespace) -> int:
    from mamba_integer.encrypted import keys, models

    model = models.load(options.model)
    began = time.perf_counter()
    client, server = keys.generate(model, options.output)
    key = keys.Key.read(client, "client")
    out = {
        "profile": key.profile,
        "model": key.model,
        "key_id": key.key_id,
        "client_key": os.fspath(client),
        "client_key_bytes": client.stat().st_size,
        "server_key": os.fspath(server),
        "server_key_bytes": server.stat().st_size,
        "seconds": round(time.perf_counter() - began, 2),
    }
    _tell(
        options,
        out,
        [
            ("profile", keys.PROFILES[key.profile]),
            ("model", f"{key.model_name} {key.model}"),
            ("secret key", f"{client}, {client.stat().st_size:,} bytes: keep it, tell nobody"),
            ("server's key", f"{server}, {server.stat().st_size:,} bytes: for the server, by a safe way"),
            ("made in", f"{out['seconds']} s"),
        ],
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    from mamba_integer.encrypted import keys, models, protocol, server

    key = keys.Key.read(options.key, "server")
    began = time.perf_counter()
    evaluator = server.Evaluator(key, models.load(options.model))
    seconds = time.perf_counter() - began
    listening, address = protocol.listen(options.listen)
    try:
        out = {
            "listening": address,
            "profile": key.profile,
            "model": key.model,
            "key_id": key.key_id,
            "ready_seconds": round(seconds, 2),
        }
        _tell(
            options,
            out,
            [("listening", address), ("profile", keys.PROFILES[key.profile]), ("ready in", f"{seconds:.1f} s")],
        )
        sys.stdout.flush()
        server.serve(evaluator, listening, once=options.once)
        return 0
    finally:
        listening.close()
        if address.startswith("unix:"):
            Path(address[5:]).unlink(missing_ok=True)


def _generate(options: argparse.Namespace) -> int:
    from mamba_integer.encrypted import client, keys, protocol
    from mamba_integer.sampling import Sampling

    if not 1 <= options.max_tokens <= 1 << 20:
        raise ArgumentError("--max-tokens must be from 1 to 2^20")
    if not options.prompt:
        raise ArgumentError("the prompt is empty")
    key = keys.Key.read(options.key, "client")
    sampling = Sampling.parse(options.temperature, options.top_k, options.top_p, options.seed)
    plain = None if options.check is None else _plain(options.check, key)
    bar = _Bar("characters" if key.profile == "micro" else "tokens")
    try:
        made = client.generate(key, protocol.connect(options.server), options.prompt, options.max_tokens, sampling, bar)
    finally:
        bar.finish()
    if not made.logits:
        return 130
    out = made.to_json()
    same = True
    if plain is not None:
        expected = plain((made.prompt_tokens + made.tokens)[: len(made.logits)])
        same = expected.shape == (len(made.logits), made.logits[0].size) and bool((expected == made.logits).all())
        out["logits_equal"] = same
    costs = made.costs
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in out["seconds"].items())
    rows: list[tuple[str, object]] = [
        ("text", options.prompt + made.text),
        ("fed", f"{len(made.logits)} {bar.unit}, {out['seconds_per_token']} s each"),
        ("seconds", seconds),
        (
            "sent, received",
            f"{costs.bytes_sent:,} and {costs.bytes_received:,} bytes in {costs.round_trips} round trips",
        ),
        ("logits digest", made.logits_digest),
    ]
    if made.distance is not None:
        rows.append(("worst logit", f"{made.distance:.4f} from a whole number (0.5 would be a wrong one)"))
    if plain is not None:
        count = len(made.logits) * made.logits[0].size
        rows.append(
            (
                "check",
                f"all {count:,} logits equal the plain model's" if same else "LOGITS DIFFER from the plain model's",
            )
        )
    _tell(options, out, rows)
    return 130 if same and made.stop_reason == "interrupted" else int(not same)


def _plain(name: str, key: Any) -> Callable[[list[int]], Any]:
    """Logits [T, V] of the plain model: the engine's, or the micro model's in NumPy."""
    from mamba_integer.encrypted import models
    from mamba_integer.encrypted.micro import MicroModel
    from mamba_integer.engine import Model

    model = models.load(name)
    if model.digest != key.model:
        raise EncryptedError(f"--check: the key is for another model than {name}")
    return model.logits if isinstance(model, MicroModel) else Model.load(name).logits


def _train(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise ArgumentError("this needs torch: pip install 'mamba-integer[train]'")
    from mamba_integer.encrypted import train

    for name in ("steps", "batch", "length", "threads", "every"):
        if not 1 <= getattr(options, name) <= 1 << 20:
            raise ArgumentError(f"--{name} must be from 1 to 2^20")
    if not options.output.parent.is_dir() or options.output.is_dir():
        raise ArgumentError(f"{options.output}: no file can be written there")
    out = train.main(options)
    _tell(options, out, list(out.items()))
    return 0


class _Bar:
    """Progress on standard error: a bar on a terminal, silent elsewhere."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._began = time.monotonic()
        self._shown = False

    def __call__(self, done: int, most: int) -> None:
        if sys.stderr.isatty():
            filled = 30 * done // most
            seconds = time.monotonic() - self._began
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r[{bar}] {done}/{most} {self.unit}, {seconds:.0f} s ", end="", file=sys.stderr, flush=True)
            self._shown = True

    def finish(self) -> None:
        if self._shown:
            print(file=sys.stderr)
