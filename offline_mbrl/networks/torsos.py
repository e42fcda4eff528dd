"""Trunks of networks: flax modules, used by the functions `init` and `apply` below."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from offline_mbrl.types import Array, Key, Observation, Params


def fan_in_normal(fan_in: int) -> nn.initializers.Initializer:
    """Normal of deviation `1 / sqrt(fan_in)`, cut at two of them without correction (haiku's)."""
    return nn.initializers.truncated_normal(stddev=fan_in**-0.5)


def half_fan_in_normal(fan_in: int) -> nn.initializers.Initializer:
    """The same with `1 / (2 sqrt(fan_in))`, the initialization of PETS, MBPO and MOPO."""
    return nn.initializers.truncated_normal(stddev=0.5 * fan_in**-0.5)


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Uniform on `[-1, 1] / sqrt(fan_in)`, the initialization of rlkit and of CBOP."""

    def init(
        key: Key, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None
    ) -> Array:
        del out_sharding  # flax passes it to its own initializers alone
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


class MLP(nn.Module):
    """Dense layers with an activation between them; the input is flattened.

    Where layers are normalized, that follows the activation (ReBRAC's and OGBench's order).
    """

    sizes: Sequence[int]
    activate_final: bool = False
    activation: Callable[[Array], Array] = nn.relu
    # (fan in) -> initializer
    kernel_init: Callable[[int], nn.initializers.Initializer] = fan_in_normal
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    normalize_layers: bool = False
    dtype: Any = None  # of hidden layers; see `precision`

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """One input of any shape to `[sizes[-1]]`."""
        x = jnp.ravel(x)
        for i, size in enumerate(self.sizes):
            is_hidden = self.activate_final or i + 1 < len(self.sizes)
            dense = nn.Dense(
                size,
                kernel_init=self.kernel_init(x.shape[0]),
                bias_init=self.bias_init,
                dtype=self.dtype if is_hidden else None,
                name=f"layer_{i}",
            )
            x = dense(x)
            if is_hidden:
                x = self.activation(x)
                if self.normalize_layers:
                    x = nn.LayerNorm(dtype=self.dtype, name=f"normalization_{i}")(x)
        return x


class ActionConditioned(nn.Module):
    """Dense layers on a state beside a one-hot action.

    The first layer is split into a state part and a row per action: the same function as on their
    concatenation, but under a vmap over actions alone the state part is computed once, which is
    where most of a one-step lookahead's time would go.
    """

    sizes: Sequence[int]
    num_actions: int
    dtype: Any = None  # of hidden layers; see `precision`

    @nn.compact
    def __call__(self, x: Array, action: Array) -> Array:
        """State `[D]` and action `[]` to `[sizes[-1]]`."""
        init = fan_in_normal(x.shape[0] + self.num_actions)
        dtypes = [*[self.dtype] * (len(self.sizes) - 1), None]
        rows = _ActionRows(self.num_actions, self.sizes[0], init, dtypes[0], name="action")(action)
        x = nn.Dense(self.sizes[0], kernel_init=init, dtype=dtypes[0], name="layer_0")(x) + rows
        for i, size in enumerate(self.sizes[1:], 1):
            x = nn.relu(x)
            init = fan_in_normal(x.shape[0])
            x = nn.Dense(size, kernel_init=init, dtype=dtypes[i], name=f"layer_{i}")(x)
        return x


class _ActionRows(nn.Module):
    num_actions: int
    size: int
    init: nn.initializers.Initializer
    dtype: Any = None

    @nn.compact
    def __call__(self, action: Array) -> Array:
        kernel = self.param("kernel", self.init, (self.num_actions, self.size))
        one_hot = jax.nn.one_hot(action, self.num_actions)
        one_hot, kernel = promote_dtype(one_hot, kernel, dtype=self.dtype)
        return one_hot @ kernel


def init(module: nn.Module, key: Key, *inputs: Any) -> Params:
    """Parameters of a flax module, for inputs of these shapes."""
    return module.init(key, *inputs)["params"]


def apply(module: nn.Module, params: Params, *inputs: Any) -> Any:
    """A flax module as a function of its parameters and inputs."""
    return module.apply({"params": params}, *inputs)


def flat(observation: Observation) -> Array:
    """Any observation as one float vector: leaves in tree order (dict keys sorted), in C order."""
    leaves = jax.tree.leaves(observation)
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves])


def flat_size(observation: Observation) -> int:
    """The size of `flat` for observations of these shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(observation))
