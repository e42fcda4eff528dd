"""Flow matching (arXiv:2210.02747): a velocity field that carries noise to data.

Points move on straight lines from standard normal noise at time 0 to the data at time 1; the field
regresses to their velocities, and Euler's method follows it from fresh noise. Points are arrays of
any shape: an action, a chunk of actions, a window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.networks import torsos
from offline_mbrl.types import Array, Key, Params

# (point [...], time []) -> [...]: the velocity there, under a condition that stands fixed
Velocity = Callable[[Array, Array], Array]


class Flow(NamedTuple):
    """A conditional velocity field of vectors as functions of its parameters."""

    init: Callable[[Key], Params]
    velocity: Callable[[Params, Array, Array, Array], Array]  # (params, [D], [A], []) -> [A]


def make(condition_size: int, size: int, layers: tuple[int, ...], **options: Any) -> Flow:
    """A field of dense layers on the condition, the point and the time.

    Args:
      condition_size: D.
      size: A, of a point.
      layers: hidden sizes.
      **options: further fields of `torsos.MLP`.
    """
    module = torsos.MLP((*layers, size), **options)

    def init(key: Key) -> Params:
        return torsos.init(module, key, jnp.zeros(condition_size + size + 1))

    def velocity(params: Params, condition: Array, point: Array, time: Array) -> Array:
        inputs = jnp.concatenate([condition, point, jnp.reshape(time, 1)])
        return torsos.apply(module, params, inputs)

    return Flow(init=init, velocity=velocity)


def between(noise: Array, data: Array, time: Array) -> Array:
    """`(1 - time) noise + time data`, the point of a straight line.

    Args:
      noise: `[...]` at time 0.
      data: `[...]` at time 1.
      time: `[]`.

    Source: arXiv:2210.02747, equation 22 with a smallest deviation of 0.
    """
    chex.assert_equal_shape([noise, data])
    return (1.0 - time) * noise + time * data


def velocity_loss(velocity: Velocity, data: Array, noise: Array, time: Array) -> Array:
    """`|velocity(between(noise, data, time), time) - (data - noise)|^2`, a mean over entries, `[]`.

    Args:
      velocity: the field.
      data: `[...]` one sample.
      noise: `[...]` standard normal.
      time: `[]` uniform in [0, 1].

    Source: arXiv:2210.02747, equation 23 with a smallest deviation of 0.
    """
    chex.assert_rank(time, 0)
    predicted = velocity(between(noise, data, time), time)
    return jnp.mean(jnp.square(predicted - (data - noise)))


def integrate(velocity: Velocity, noise: Array, num_steps: int) -> Array:
    """The point at time 1 of the path through `noise`, by Euler's method; `[...]`.

    Args:
      velocity: the field.
      noise: `[...]` at time 0.
      num_steps: N; the field is read at times 0, 1/N, ..., (N - 1)/N.
    """

    def step(point: Array, index: Array) -> tuple[Array, None]:
        return point + velocity(point, index / num_steps) / num_steps, None

    point, _ = jax.lax.scan(step, noise, jnp.arange(num_steps))
    return point
