"""Output heads."""

import flax.linen as nn

from offline_mbrl.types import Array


class ZeroHead(nn.Module):
    """A dense layer whose weights and biases start at exactly zero: uniform logits, zero outputs."""

    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[D]` to `[size]`."""
        return nn.Dense(self.size, kernel_init=nn.initializers.zeros_init())(x)
