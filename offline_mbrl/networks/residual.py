"""Residual convolutions for pixels (ResNet v2): ROSMO's Atari networks, as flax modules.

Everything works on one image `[H, W, C]`; vmap makes one batched convolution of it. Convolutions
have no bias and padding SAME. Layer normalization takes its statistics over height, width and
channels jointly and has one scale and offset per channel, as the released code has it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from offline_mbrl.networks import heads, torsos
from offline_mbrl.settings import Scope, at_least, read_if, sizes
from offline_mbrl.types import Array, Observation, PyTree, UsageError

# auto: resnet for one image [H, W, C], mlp for everything else
Torso = Literal["auto", "mlp", "resnet"]


@dataclass(frozen=True)
class ResNetConfig:
    """The sizes of ROSMO's Atari release; used where observations are images."""

    channels: Annotated[int, at_least(2)] = 64  # of the embedding; the first stage has half
    blocks_representation: Annotated[int, at_least(0)] = 6  # after the last pooling
    blocks_transition: Annotated[int, at_least(0)] = 2
    blocks_prediction: Annotated[int, at_least(0)] = 2  # shared by policy and value
    head_channels: Annotated[int, at_least(1)] = 128  # of the 1x1 convolution that heads begin with
    head_layers: Annotated[tuple[int, ...], sizes()] = (128, 128)


def chosen(torso: Torso, observation: PyTree) -> bool:
    """Whether observations of this shape go through residual convolutions.

    Raises:
      UsageError: convolutions are asked for something that is not an image.
    """
    leaves = jax.tree.leaves(observation)
    is_image = len(leaves) == 1 and len(leaves[0].shape) == 3
    if torso == "mlp" or (torso == "auto" and not is_image):
        return False
    if not is_image:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise UsageError(
            f"torso resnet needs one image [H, W, C], but observations have shape {shapes}: "
            "use torso mlp"
        )
    return True


def _uses_resnet(scope: Scope) -> bool:
    return chosen(scope.config.torso, scope.spec.observation)


def _uses_mlp(scope: Scope) -> bool:
    return not _uses_resnet(scope)


# Of a config's settings beside its `torso`.
if_resnet = read_if(_uses_resnet, "torso resnet")
if_mlp = read_if(_uses_mlp, "torso mlp")


class ResBlock(nn.Module):
    """Pre-activation: `shortcut(y) + conv(relu(norm(conv(y))))` with `y = relu(norm(x))`.

    The shortcut is `x` itself, or a 3x3 convolution of the activated `y` where the shape changes.
    """

    channels: int
    stride: int = 1
    project: bool = False
    dtype: Any = None  # of all but a head's last layer; see `precision`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[H, W, C]` to `[H / stride, W / stride, channels]`, rounded up."""
        conv = functools.partial(convolve, channels=self.channels, dtype=self.dtype)
        y = activate(x, "norm_0", self.dtype)
        shortcut = conv(y, name="shortcut", stride=self.stride) if self.project else x
        z = conv(y, name="conv_0", stride=self.stride)
        return shortcut + conv(activate(z, "norm_1", self.dtype), name="conv_1")


class Tower(nn.Module):
    """Residual blocks of one size."""

    num_blocks: int
    channels: int
    dtype: Any = None  # of all but a head's last layer; see `precision`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[H, W, channels]` to the same shape."""
        (x,) = promote_dtype(x, dtype=self.dtype)
        for i in range(self.num_blocks):
            x = ResBlock(self.channels, dtype=self.dtype, name=f"block_{i}")(x)
        return x


class Representation(nn.Module):
    """An image to an embedding a sixteenth of its height and width.

    `[84, 84, 4]` becomes `[6, 6, 64]`.
    """

    config: ResNetConfig
    dtype: Any = None  # of all but a head's last layer; see `precision`

    @nn.compact
    def __call__(self, observation: Observation) -> Array:
        """One image `[H, W, C]`, bytes or floats, to `[H / 16, W / 16, channels]`, rounded up."""
        size = self.config.channels
        # The next block activates it.
        x = convolve(pixels(observation), size // 2, "conv", stride=2, dtype=self.dtype)
        block = functools.partial(ResBlock, dtype=self.dtype)
        x = block(size // 2, name="half")(x)
        x = block(size, stride=2, project=True, name="quarter_0")(x)
        x = average_pool(block(size, name="quarter_1")(x))
        x = average_pool(block(size, name="eighth")(x))
        return Tower(self.config.blocks_representation, size, self.dtype, name="tower")(x)


class Dynamics(nn.Module):
    """One model step: a convolution beside action planes, a residual link, and blocks.

    The same function as on `A` constant one-hot planes beside the embedding: convolutions are
    linear, and that of a constant plane is a map that only the action decides. So under a vmap over
    actions alone the embedding's part is computed once.
    """

    config: ResNetConfig
    num_actions: int
    dtype: Any = None  # of all but a head's last layer; see `precision`

    @nn.compact
    def __call__(self, embedding: Array, action: Array) -> Array:
        """Embedding `[H, W, channels]` and action `[]` to the embedding that it leads to."""
        size = self.config.channels
        init = torsos.fan_in_normal(9 * (size + self.num_actions))
        (embedding,) = promote_dtype(embedding, dtype=self.dtype)
        activated = activate(embedding, "norm", self.dtype)
        y = convolve(activated, size, "conv", init=init, dtype=self.dtype)
        action_planes = _ActionPlanes(self.num_actions, size, init, self.dtype, name="action")
        planes = action_planes(action, embedding.shape[:2])
        tower = Tower(self.config.blocks_transition, size, self.dtype, name="tower")
        return tower(embedding + y + planes)


class _ActionPlanes(nn.Module):
    num_actions: int
    channels: int
    init: nn.initializers.Initializer
    dtype: Any = None

    @nn.compact
    def __call__(self, action: Array, size: tuple[int, ...]) -> Array:
        kernel = self.param("kernel", self.init, (3, 3, self.num_actions, self.channels))
        one_hot = jax.nn.one_hot(action, self.num_actions)
        one_hot, kernel = promote_dtype(one_hot, kernel, dtype=self.dtype)
        taps = jnp.tensordot(one_hot, kernel, axes=(0, 2))  # [3, 3, C]
        rows, columns = (_inside(length).astype(taps.dtype) for length in size)
        return jnp.einsum("hi,wj,ijc->hwc", rows, columns, taps)


def _inside(length: int) -> Array:
    """`[length, 3]`: 1 where a tap of a centered kernel of three falls inside the image."""
    at = jnp.arange(length)[:, None] + jnp.arange(-1, 2)[None]
    return ((at >= 0) & (at < length)).astype(jnp.float32)


class Head(nn.Module):
    """A 1x1 convolution, dense layers and an output that starts at exactly zero."""

    config: ResNetConfig
    size: int
    dtype: Any = None  # of all but a head's last layer; see `precision`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[H, W, C]` to `[size]`."""
        channels = self.config.head_channels
        x = activate(x, "norm_0", self.dtype)
        x = convolve(x, channels, "conv", width=1, dtype=self.dtype)
        x = jnp.ravel(activate(x, "norm_1", self.dtype))
        dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        for i, size in enumerate(self.config.head_layers):
            x = dense(size, kernel_init=torsos.fan_in_normal(x.shape[0]), name=f"layer_{i}")(x)
            x = nn.relu(norm(name=f"layer_norm_{i}")(x))
        return heads.ZeroHead(self.size, name="output")(x)


# --- layers, called inside the modules above ---


def activate(x: Array, name: str, dtype: Any = None) -> Array:
    """`relu(norm(x))` of `[H, W, C]`.

    Args:
      x: `[H, W, C]`.
      name: the normalization's among its module's parameters.
      dtype: of the result; None: that of x.
    """
    axes = (-3, -2, -1)
    norm = nn.LayerNorm(1e-5, dtype, reduction_axes=axes, feature_axes=-1, name=name)
    return nn.relu(norm(x))


def convolve(
    x: Array,
    channels: int,
    name: str,
    *,
    width: int = 3,
    stride: int = 1,
    init: Any = None,
    dtype: Any = None,
) -> Array:
    """A convolution with a square kernel.

    Args:
      x: `[H, W, C]`.
      channels: of the output.
      name: the layer's among its module's parameters.
      width: of the kernel.
      stride: in both directions.
      init: initializer of the kernel; None: `torsos.fan_in_normal`.
      dtype: of the computation; None: that of x.

    Returns:
      `[H / stride, W / stride, channels]`, rounded up.
    """
    convolution = nn.Conv(
        features=channels,
        kernel_size=(width, width),
        strides=stride,
        use_bias=False,
        dtype=dtype,
        kernel_init=init or torsos.fan_in_normal(width * width * x.shape[-1]),
        # None: the library's
        conv_general_dilated=convolve_patches if jax.default_backend() == "cpu" else None,
        name=name,
    )
    return convolution(x)


def convolve_patches(
    x: Array,
    kernel: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """`jax.lax.conv_general_dilated` of plain images as one matrix product with their patches.

    For CPUs: inside a loop XLA compiles the gradient of a convolution by a slow path (its pass that
    brings it into the fast form looks at the outermost computation alone); five to seven times
    slower, measured.

    Args:
      x: images `[B, H, W, C]`.
      kernel: `[K, K, C, D]`.
      window_strides: of height and width.
      padding: "SAME" or "VALID", or cells before and after.
      options: what flax passes besides; no dilation, no groups.

    Returns:
      `[B, H', W', D]`.
    """
    del options
    size = kernel.shape[:2]
    down, right = window_strides
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], size, window_strides, padding)
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (x.shape[axis + 1] - size[axis] for axis in (0, 1))
    patches = [
        x[:, i : i + height + 1 : down, j : j + width + 1 : right]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def average_pool(x: Array) -> Array:
    """Means over 3x3 cells at every second one; beyond the edge there are none to count."""
    return nn.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)


def pixels(observation: Observation) -> Array:
    """The image of an observation as floats; bytes are divided by 255."""
    (image,) = jax.tree.leaves(observation)
    scale = 255.0 if jnp.issubdtype(image.dtype, jnp.integer) else 1.0
    return image.astype(jnp.float32) / scale
