"""The convolutions of DQN's Atari network (Mnih et al., Nature 2015)."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.networks import residual, torsos
from offline_mbrl.types import Array, Observation

LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, width of the kernel, stride
DENSE = 512  # the size of the dense layer that follows
Padding = Literal["SAME", "VALID"]


class Convolutions(nn.Module):
    """An image to a vector; `[84, 84, 4]` becomes 7744 numbers with SAME, 3136 with VALID."""

    padding: Padding = "SAME"
    dtype: Any = None  # of the computation; see `precision`

    @nn.compact
    def __call__(self, observation: Observation) -> Array:
        """One image `[H, W, C]`, bytes or floats, to `[D]`."""
        x = residual.pixels(observation)
        on_cpu = jax.default_backend() == "cpu"
        for i, (channels, width, stride) in enumerate(LAYERS):
            convolution = nn.Conv(
                channels,
                (width, width),
                stride,
                self.padding,
                dtype=self.dtype,
                kernel_init=torsos.fan_in_normal(width * width * x.shape[-1]),
                conv_general_dilated=residual.convolve_patches if on_cpu else None,
                name=f"conv_{i}",
            )
            x = nn.relu(convolution(x))
        return jnp.ravel(x)
