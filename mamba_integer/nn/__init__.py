"""PyTorch modules that train the integer model: the forward pass rounds as spec/ARITHMETIC.md says, gradients pass straight through."""

from mamba_integer.nn.fused import Teacher, loss, token_nats
from mamba_integer.nn.model import FloatMamba, MambaInteger, build_model

__all__ = ["FloatMamba", "MambaInteger", "Teacher", "build_model", "loss", "token_nats"]
