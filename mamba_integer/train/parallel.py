"""Several processes that train as one, each on its rows of every batch.

Gradients are summed by one all-reduce of one buffer, not by DistributedDataParallel: DDP hooks into every parameter's accumulation and into the call of
`forward`, sums in buckets whose order changes, and hides the sum behind the backward pass, which for some millions of parameters saves nothing. One
buffer is exact whatever computes the gradients (fused autograd functions included), and every process can look at the whole gradient.

What the processes tell each other besides (stop, failure, sums of losses) goes through Gloo on the CPU, also where gradients go through NCCL: a process
that fails says so before the others enter a sum that it would not join. This module knows nothing of models or data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mamba_integer.errors import ArgumentError, ParallelError

TIMEOUT = timedelta(minutes=10)  # that a process waits for another whose connection is still open


class World:
    """The processes that train together: `World()` is one alone, which says nothing to anybody; `World.join` takes torchrun's word.

    rank: which of `size` processes this one is; the first (0) writes files and reports. device: where its copy of the model lives.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, device

    @classmethod
    @contextmanager
    def join(cls, device: str) -> Iterator[World]:
        """The world that torchrun describes in the environment. Leaving it waits for the others or, after an error, leaves them no connection to wait on.

        Raises ArgumentError if there are more processes than CUDA devices.
        """
        size, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
        if size == 1:
            yield cls(device=device)
            return
        if device == "cuda":
            if local >= torch.cuda.device_count():
                raise ArgumentError(
                    f"process {rank} finds {torch.cuda.device_count()} CUDA devices; one each is needed"
                )
            torch.cuda.set_device(local)
            device = f"cuda:{local}"
        dist.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo", timeout=TIMEOUT)
        try:
            world = cls(rank, size, device)
            yield world
            world.wait()
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        self.any(False)

    def any(self, flag: bool) -> bool:
        """Is the flag set in any process?"""
        return bool(self.totals(float(flag))[0])

    def totals(self, *values: float) -> list[float]:
        """Sums of the processes' values, in double precision."""
        sums = torch.tensor(values, dtype=torch.float64)
        self._exchange(lambda: dist.all_reduce(sums))
        return [float(x) for x in sums]

    def sum_(self, buffer: Tensor) -> None:
        """The sum of the processes' buffers, in place: the same bits in every process."""
        self._exchange(lambda: dist.all_reduce(buffer))

    def agree(self, value: str, what: str) -> None:
        """Raises ParallelError in every process unless all have the same value."""
        values = self._gather(value)
        if len(set(values)) > 1:
            raise ParallelError(f"the processes do not have the same {what}: {', '.join(map(str, values))}")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What fails in one process within, fails in all: there as it is, elsewhere as a ParallelError that repeats its message."""
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        if self.any(failure is not None):
            reasons = self._gather(None if failure is None else str(failure) or type(failure).__name__)
            if failure is not None:
                raise failure
            said = "; ".join(f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason is not None)
            raise ParallelError(said)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does what is within before the others, which then find what it left in a cache."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def _gather(self, value: str | None) -> list[str | None]:
        values: list[str | None] = [value] * self.size
        self._exchange(lambda: dist.all_gather_object(values, value))
        return values

    def _exchange(self, act: Callable[[], object]) -> None:
        if self.size == 1:
            return
        try:
            act()
        except RuntimeError as error:
            raise ParallelError(
                f"process {self.rank} lost the others: one has ended, and its own message says why"
            ) from error


class Gradients:
    """The gradients of parameters as one float32 buffer on their device, of which every `p.grad` is a view; its last number is the loss."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        self._buffer = torch.zeros(sum(p.numel() for p in parameters) + 1, device=parameters[0].device)
        begin = 0
        for p in parameters:
            p.grad = self._buffer[begin : begin + p.numel()].view_as(p)
            begin += p.numel()

    def clear(self) -> None:
        self._buffer.zero_()

    def add_loss(self, loss: Tensor) -> None:
        self._buffer[-1] += loss.detach()

    def sum_over(self, world: World) -> float:
        """Sums gradients and loss over the processes; returns the loss."""
        world.sum_(self._buffer)
        return float(self._buffer[-1])

    def clip_(self, limit: float) -> float:
        """Scales the gradient down to a Euclidean norm of at most `limit`; returns the norm that it had."""
        gradient = self._buffer[:-1]
        norm = float(torch.linalg.vector_norm(gradient))
        if norm > limit:
            gradient.mul_(limit / norm)
        return norm
