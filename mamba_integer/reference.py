"""The integer model, sequential and readable: sections 8 and 9 of spec/ARITHMETIC.md in the spec's words. Every implementation is compared with this one.

Knows arithmetic.py and the model; knows no files, no text and no engine. One sequence or many at once: leading axes `...` of the tokens are batch axes
and run through everything unchanged, so a batch gives the bits of its sequences one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mamba_integer import arithmetic as ar

if TYPE_CHECKING:
    from mamba_integer.model_file import IntegerModel
    from mamba_integer.sampling import Sampling

Logits = npt.NDArray[np.int32]
Trace = Callable[[int, str, npt.NDArray[np.int32]], object]


@dataclass
class LayerState:
    """What a layer remembers. conv: the last three xBC, int16 Q8 [..., E+2N, 3], oldest first. h: int32 Q14 [..., H, P, N]."""

    conv: ar.Ints
    h: ar.Ints


class Reference:
    """Runs a model token by token. `trace(position, site, values)` is called for every intermediate, int32 [..., count], in the order and by the
    names of engine/include/mamba_integer.h."""

    def __init__(self, model: IntegerModel, trace: Trace | None = None) -> None:
        self.model = model
        self.config = model.config
        self.trace = trace
        self._tensors = {name: tensor.astype(np.int32) for name, tensor in model.tensors.items()}
        self._layers: list[dict[str, npt.NDArray[np.int32]]] = [{} for _ in range(self.config.n_layers)]
        for name, tensor in self._tensors.items():
            if name.startswith("blk."):
                _, i, part = name.split(".", 2)
                self._layers[int(i)][part] = tensor
        self.reset()

    def reset(self, batch: tuple[int, ...] = ()) -> None:
        """Back to position 0 and zero state, for one sequence or for `batch` of them."""
        c = self.config
        self.position = 0
        self.batch = batch
        self.state = [
            LayerState(
                conv=np.zeros((*batch, c.d_conv, 3), np.int64),
                h=np.zeros((*batch, c.n_heads, c.head_dim, c.d_state), np.int64),
            )
            for _ in range(c.n_layers)
        ]

    def step(self, token: npt.ArrayLike) -> Logits:
        """Feeds one token, or one for each sequence [...]: int32 logits [..., V]. ValueError for a token outside the vocabulary."""
        token = ar.within("token", token, 0, self.config.vocab_size - 1)
        r = self._note("embed", self._embed(token) * self.model.embed_mul)
        for i in range(self.config.n_layers):
            r = self._layer(i, r)
        u = self._norm("norm_f", r, self._tensors["output_norm.scale"])
        logits = self._note("logits", self._product("token_embd", u))
        self.position += 1
        return logits.astype(np.int32)

    def logits(self, tokens: npt.ArrayLike) -> Logits:
        """int32 logits [..., T, V] after each of tokens [..., T], from the zero state. The state stays as the last token leaves it."""
        tokens = ar.ints(tokens)
        self.reset(tokens.shape[:-1])
        out = np.empty((*tokens.shape, self.config.vocab_size), np.int32)
        for t in range(tokens.shape[-1]):
            out[..., t, :] = self.step(tokens[..., t])
        return out

    def generate(
        self, prompt: npt.ArrayLike, max_tokens: int, sampling: Sampling, end: int | None = None
    ) -> Iterator[int]:
        """Tokens chosen after a prompt [T], T ≥ 1, fed from the zero state; the last of them is `end` if that is chosen."""
        logits = self.logits(prompt)[-1]
        for step in range(max_tokens):
            token = self.sample(logits, sampling, step)
            yield token
            if token == end or step + 1 == max_tokens:
                return
            logits = self.step(token)

    def sample(self, logits: npt.ArrayLike, sampling: Sampling, step: int) -> int:
        """The token that section 11 chooses from logits [V]; `step` is 0 for the first generated token."""
        s = sampling
        return ar.sample(
            logits, self.model.embed_mul, self.model.logit_shift, s.temperature, s.top_k, s.top_p, s.seed, step
        )

    def _embed(self, token: ar.Ints) -> ar.Ints:
        """Rows of the embedding, int8 [..., D]. This and `_product` are all that touches a matrix; encrypted inference asks a server instead."""
        return ar.ints(self._tensors["token_embd.weight"][token])

    def _product(self, name: str, x: ar.Ints) -> ar.Ints:
        """int32 [..., O]: the matrix of this name times x int8 [..., K]."""
        return ar.matmul(x, self._tensors[name + ".weight"])

    def _layer(self, i: int, r: ar.Ints) -> ar.Ints:
        """Section 8: residual Q8 [..., D] to residual."""
        c, w, state, site = self.config, self._layers[i], self.state[i], f"blk.{i}."
        E = c.d_inner

        u = self._norm(site + "norm1", r, w["norm1.scale"])
        projected = ar.requantise(self._product(site + "in_proj", u), w["in_proj.mul"], self.model.in_proj_shift[i])
        self._note(site + "in_proj", projected)
        z, xBC, dt = np.split(projected, [E, E + c.d_conv], axis=-1)

        taps = np.concatenate([state.conv, xBC[..., None]], axis=-1)
        state.conv = taps[..., 1:]
        conv = self._note(site + "conv", ar.conv4(taps, w["conv.weight"], w["conv.bias"]))

        a, f = ar.act(conv, c.activation)
        x = self._note(site + "x", ar.sat(ar.rshift(a[..., :E], f - 5), 8))
        B, C = (self._six_bits(v, f) for v in np.split(a[..., E:], 2, axis=-1))
        self._note(site + "B", B)
        self._note(site + "C", C)

        m = self._note(site + "m", ar.modulation(dt, w["scan.A"], w["scan.base"], w["scan.k"], c.scan))
        x = x.reshape(*x.shape[:-1], c.n_heads, c.head_dim)
        v = (x[..., None] * B[..., None, None, :]) << 6
        state.h = ar.scan_step(state.h, v, m[..., None, None], w["scan.k"][:, None, None], c.scan)
        self._note(site + "state", state.h)
        y = ar.scan_output(state.h, C[..., None, None, :], w["scan.skip"][:, None], x).reshape(z.shape)
        self._note(site + "y", y)

        a, f = ar.act(z, c.gate)
        g = self._note(site + "gate", ar.sat(ar.rshift(a, f - 8), 15))
        o = self._note(site + "gated", ar.sat(ar.rshift(y * g, 6), 18))
        v = self._norm(site + "norm2", o, w["norm2.scale"])
        added = ar.requantise(self._product(site + "out_proj", v), w["out_proj.mul"], self.model.out_proj_shift[i])
        self._note(site + "out_proj", added)
        return self._note(site + "resid", ar.sat(r + added, 18))

    def _six_bits(self, a: ar.Ints, f: int) -> ar.Ints:
        """B or C, six bits Q3 [..., N], from activations of scale f."""
        if self.config.rotation:
            return ar.sat(ar.rshift(ar.rotate_heads(ar.rshift(a, f - 8), self.position), 5), 6)
        return ar.sat(ar.rshift(a, f - 3), 6)

    def _norm(self, site: str, x: ar.Ints, g: npt.ArrayLike) -> ar.Ints:
        out, j, mu = ar.norm(x, g, self.config.norm_mantissa)
        self._note(site + ".j", j)
        self._note(site + ".mu", mu)
        return self._note(site, out)

    def _note(self, site: str, values: ar.Ints) -> ar.Ints:
        """Passes values on, showing them to the trace."""
        if self.trace is not None:
            shown = values.astype(np.int32)
            self.trace(self.position, site, shown.reshape(*self.batch, -1))
        return values
