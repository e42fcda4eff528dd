"""Networks that denoise windows `[w, D]`: residual dense layers, and a temporal U-Net.

Both read the noise level as one number, the condition, through sinusoids. `film` scales and shifts
features by it (arXiv:1709.07871), `shift` only shifts them, as Diffuser's network does.

Convolutions over time are shifted copies and one dense product, ten times faster on a CPU than the
compiler's own.

Departure from Diffuser (arXiv:2205.09991): the sinusoids are those of the condition instead of the
index of a level, so that a network serves any schedule; there is no attention.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from offline_mbrl.networks import torsos
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.types import Array, UsageError

Modulation = Literal["film", "shift"]
FREQUENCIES = (0.25, 16.0)  # of the condition's sinusoids, lowest and highest, in radians
NUM_GROUPS = 8  # of channels in normalizations


@dataclass(frozen=True)
class MLPConfig:
    """Residual dense layers: nine milliseconds a step for windows of eight on two cores."""

    width: Annotated[int, at_least(1)] = 256
    num_blocks: Annotated[int, at_least(0)] = 3
    embedding_size: Annotated[int, at_least(2)] = 32  # of the condition; even
    modulation: Modulation = "film"


@dataclass(frozen=True)
class UNetConfig:
    """Diffuser's sizes for hopper and walker2d; halfcheetah and maze2d have (1, 4, 8)."""

    width: Annotated[int, at_least(8)] = 32  # channels of the first level, a multiple of 8
    multiples: Annotated[tuple[int, ...], sizes()] = (1, 2, 4, 8)  # of the width, for each level
    kernel: Annotated[int, at_least(1)] = 5  # rows; odd
    modulation: Modulation = "shift"


def sinusoids(condition: Array, size: int) -> Array:
    """`[sin(c f), cos(c f)]` at log-spaced frequencies f, `[size]`.

    Args:
      condition: c `[]`.
      size: even.
    """
    frequencies = jnp.geomspace(*FREQUENCIES, size // 2)
    return jnp.concatenate([jnp.sin(condition * frequencies), jnp.cos(condition * frequencies)])


def require_divisible(length: int, config: UNetConfig) -> None:
    """Refuses widths that normalizations cannot group, and windows that cannot be halved.

    Args:
      length: w, halved once for each level below the first.
      config: of the U-Net.

    Raises:
      UsageError: either of them.
    """
    if config.width % NUM_GROUPS:
        raise UsageError(
            f"a U-Net normalizes groups of {NUM_GROUPS} channels, but `width` is {config.width}: "
            f"use a multiple of {NUM_GROUPS}"
        )
    factor = 2 ** (len(config.multiples) - 1)
    if length % factor:
        raise UsageError(
            f"a U-Net of {len(config.multiples)} levels halves windows {len(config.multiples) - 1} "
            f"times, but windows have {length} rows: use a multiple of {factor}, or fewer "
            "`multiples`"
        )


# --- dense layers ---


class ResidualMLP(nn.Module):
    """Dense blocks `h + Dense(silu(modulated LayerNorm(h)))` on the flat window.

    The output has a linear path from the input beside them.
    """

    config: MLPConfig = MLPConfig()

    @nn.compact
    def __call__(self, window: Array, condition: Array) -> Array:
        """Window `[w, D]` and condition `[]` to `[w, D]`."""
        width = self.config.width
        x = jnp.ravel(window)
        embedding = nn.silu(
            nn.Dense(width, name="embedding")(sinusoids(condition, self.config.embedding_size))
        )
        h = nn.Dense(width, name="input")(x)
        for i in range(self.config.num_blocks):
            y = nn.LayerNorm(name=f"normalization_{i}")(h)
            y = Modulated(self.config.modulation, name=f"modulation_{i}")(y, embedding)
            h = h + nn.Dense(width, name=f"block_{i}")(nn.silu(y))
        outputs = nn.Dense(x.shape[0], name="output")(h)
        outputs = outputs + nn.Dense(x.shape[0], use_bias=False, name="skip")(x)
        return outputs.reshape(window.shape)


class Modulated(nn.Module):
    """Features `[..., C]` scaled and shifted, or shifted, by a linear function of an embedding."""

    modulation: Modulation

    @nn.compact
    def __call__(self, features: Array, embedding: Array) -> Array:
        """Features `[..., C]` and embedding `[E]` to `[..., C]`."""
        channels = features.shape[-1]
        has_scale = self.modulation == "film"
        outputs = nn.Dense((1 + has_scale) * channels, name="dense")(embedding)
        outputs = outputs.reshape((1,) * (features.ndim - 1) + outputs.shape)
        if not has_scale:
            return features + outputs
        scale, shift = jnp.split(outputs, 2, axis=-1)
        return features * (1.0 + scale) + shift


# --- the U-Net ---


class UNet(nn.Module):
    """Diffuser's temporal U-Net (arXiv:2205.09991, appendix C): rows are time, entries channels."""

    config: UNetConfig = UNetConfig()

    @nn.compact
    def __call__(self, window: Array, condition: Array) -> Array:
        """Window `[w, D]` and condition `[]` to `[w, D]`.

        Raises:
          UsageError: under the conditions of `require_divisible`.
        """
        require_divisible(window.shape[0], self.config)
        width = self.config.width
        channels = [width * multiple for multiple in self.config.multiples]
        embedding = nn.Dense(4 * width, name="embedding_0")(sinusoids(condition, width))
        embedding = nn.Dense(width, name="embedding_1")(jax.nn.mish(embedding))
        x = window
        skips = []
        for i, size in enumerate(channels):
            x = self._pair(size, f"down_{i}")(x, embedding)
            skips.append(x)
            if i + 1 < len(channels):
                x = Convolution(size, kernel=3, stride=2, name=f"halve_{i}")(x)
        x = self._pair(channels[-1], "middle")(x, embedding)
        for i in reversed(range(1, len(channels))):
            x = jnp.concatenate([x, skips[i]], axis=-1)
            x = self._pair(channels[i - 1], f"up_{i}")(x, embedding)
            x = Doubling(channels[i - 1], name=f"double_{i}")(x)
        x = Block(width, self.config.kernel, name="head")(x)
        return nn.Dense(window.shape[1], name="output")(x)

    def _pair(self, channels: int, name: str) -> "ResidualPair":
        return ResidualPair(channels, self.config.kernel, self.config.modulation, name=name)


class ResidualPair(nn.Module):
    """Two residual blocks: `block(modulated block(x)) + x`, twice."""

    channels: int
    kernel: int
    modulation: Modulation

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        """`[w, C]` and embedding `[E]` to `[w, channels]`."""
        activated = jax.nn.mish(embedding)
        for i in range(2):
            h = Block(self.channels, self.kernel, name=f"block_{i}_0")(x)
            h = Modulated(self.modulation, name=f"modulation_{i}")(h, activated)
            h = Block(self.channels, self.kernel, name=f"block_{i}_1")(h)
            if x.shape[-1] != self.channels:
                x = nn.Dense(self.channels, name=f"shortcut_{i}")(x)
            x = x + h
        return x


class Block(nn.Module):
    """Convolution, group normalization, Mish."""

    channels: int
    kernel: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[w, C]` to `[w, channels]`."""
        x = Convolution(self.channels, kernel=self.kernel, name="convolution")(x)
        # The normalization takes its first axis for a batch.
        x = nn.GroupNorm(NUM_GROUPS, epsilon=1e-5, name="normalization")(x[None])[0]
        return jax.nn.mish(x)


class Convolution(nn.Module):
    """A convolution over rows, padded with `kernel // 2` rows of zeros on both sides."""

    channels: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[w, C]` to `[w / stride, channels]`, rounded up."""
        length = x.shape[0]
        padded = jnp.pad(x, ((self.kernel // 2, self.kernel // 2), (0, 0)))
        copies = [padded[i : i + length : self.stride] for i in range(self.kernel)]
        dense = nn.Dense(
            self.channels,
            kernel_init=torsos.fan_in_normal(self.kernel * x.shape[1]),
            name="dense",
        )
        return dense(jnp.concatenate(copies, axis=-1))


class Doubling(nn.Module):
    """The transposed convolution of four taps that doubles the number of rows.

    `y_2j = W_1 x_j + W_3 x_(j-1)` and `y_(2j+1) = W_2 x_j + W_0 x_(j+1)`.
    """

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[w, C]` to `[2 w, channels]`."""
        init = torsos.fan_in_normal(2 * x.shape[1])
        before = jnp.pad(x, ((1, 0), (0, 0)))[:-1]
        after = jnp.pad(x, ((0, 1), (0, 0)))[1:]
        # One bias for both
        even = nn.Dense(self.channels, use_bias=False, kernel_init=init, name="even")
        odd = nn.Dense(self.channels, use_bias=False, kernel_init=init, name="odd")
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        pairs = jnp.stack(
            [
                even(jnp.concatenate([x, before], axis=-1)),
                odd(jnp.concatenate([x, after], axis=-1)),
            ],
            axis=1,
        )
        return pairs.reshape(2 * x.shape[0], self.channels) + bias[None]
