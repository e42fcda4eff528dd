"""What actor-critic learners are put together from: actors, critics and value functions.

Every builder takes the layers' sizes and returns functions of parameters. Their weights start as
those of `torsos.MLP` unless `options` (its further fields) say otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl.networks import distributions, ensemble, heads, torsos
from offline_mbrl.types import (
    Action,
    Array,
    EnvironmentSpec,
    Key,
    Observation,
    Params,
    action_size,
)

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}


class Network(NamedTuple):
    """A network as functions of its parameters, for one input."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]  # (params, *inputs) -> output


def mlp(num_inputs: int, sizes: tuple[int, ...], **options: Any) -> Network:
    """Dense layers on a vector `[num_inputs]`, to `[sizes[-1]]`.

    Args:
      num_inputs: size of the input.
      sizes: of all layers, the last included.
      **options: further fields of `torsos.MLP`.
    """
    module = torsos.MLP(sizes, **options)

    def init(key: Key) -> Params:
        return torsos.init(module, key, jnp.zeros(num_inputs))

    def apply(params: Params, x: Array) -> Array:
        return torsos.apply(module, params, x)

    return Network(init=init, apply=apply)


# --- actors: (params, one observation) -> distribution ---


def deterministic_actor(
    spec: EnvironmentSpec, caller: str, layers: tuple[int, ...], **options: Any
) -> Network:
    """`tanh` of the outputs as the action.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    size = action_size(spec, caller)
    network = mlp(torsos.flat_size(spec.observation), (*layers, size), **options)

    def apply(params: Params, observation: Observation) -> distributions.Deterministic:
        outputs = network.apply(params, torsos.flat(observation))
        return distributions.Deterministic(action=jnp.tanh(outputs))

    return Network(init=network.init, apply=apply)


def squashed_normal_actor(
    spec: EnvironmentSpec,
    caller: str,
    layers: tuple[int, ...],
    bound: Callable[[Array], Array],
    **options: Any,
) -> Network:
    """`tanh` of a normal whose mean and log standard deviation are outputs.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      bound: limits raw log standard deviations `[A]`.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    size = action_size(spec, caller)
    network = mlp(torsos.flat_size(spec.observation), (*layers, 2 * size), **options)

    def apply(params: Params, observation: Observation) -> distributions.SquashedNormal:
        return heads.squashed_normal(network.apply(params, torsos.flat(observation)), bound)

    return Network(init=network.init, apply=apply)


def clipped_normal_actor(
    spec: EnvironmentSpec,
    caller: str,
    layers: tuple[int, ...],
    log_std_bounds: tuple[float, float],
    **options: Any,
) -> Network:
    """A normal with the `tanh` of outputs as mean, and a deviation that is the same everywhere.

    Log standard deviations start at 0.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      log_std_bounds: log standard deviations are clipped to them.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    size = action_size(spec, caller)
    network = mlp(torsos.flat_size(spec.observation), (*layers, size), **options)

    def init(key: Key) -> Params:
        return {"mean": network.init(key), "log_std": jnp.zeros(size)}

    def apply(params: Params, observation: Observation) -> distributions.ClippedNormal:
        return distributions.ClippedNormal(
            mean=jnp.tanh(network.apply(params["mean"], torsos.flat(observation))),
            log_std=jnp.clip(params["log_std"], *log_std_bounds),
        )

    return Network(init=init, apply=apply)


def mixture_actor(
    spec: EnvironmentSpec,
    caller: str,
    layers: tuple[int, ...],
    num_components: int,
    **options: Any,
) -> Network:
    """A mixture of diagonal normals, whose samples are clipped.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      num_components: of the mixture.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    num_outputs = num_components * (1 + 2 * action_size(spec, caller))
    network = mlp(torsos.flat_size(spec.observation), (*layers, num_outputs), **options)

    def apply(params: Params, observation: Observation) -> distributions.NormalMixture:
        return heads.normal_mixture(network.apply(params, torsos.flat(observation)), num_components)

    return Network(init=network.init, apply=apply)


# --- critics and values ---


def critic(
    spec: EnvironmentSpec,
    caller: str,
    layers: tuple[int, ...],
    num_outputs: int = 1,
    **options: Any,
) -> Network:
    """One network of an observation and an action, to `[num_outputs]`.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      num_outputs: 1 for a value; the atoms of a distributional one.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    num_inputs = torsos.flat_size(spec.observation) + action_size(spec, caller)
    network = mlp(num_inputs, (*layers, num_outputs), **options)

    def apply(params: Params, observation: Observation, action: Action) -> Array:
        return network.apply(params, jnp.concatenate([torsos.flat(observation), action]))

    return Network(init=network.init, apply=apply)


def critics(
    spec: EnvironmentSpec,
    caller: str,
    layers: tuple[int, ...],
    num_critics: int,
    **options: Any,
) -> ensemble.Ensemble:
    """N critics: `(params, observations [B, ...], actions [B, A])` to values `[N, B]`.

    Args:
      spec: of the problem.
      caller: the learner, for messages.
      layers: hidden sizes.
      num_critics: N.
      **options: further fields of `torsos.MLP`.

    Raises:
      UsageError: the actions are discrete.
    """
    network = critic(spec, caller, layers, **options)

    def q(params: Params, observation: Observation, action: Action) -> Array:
        return network.apply(params, observation, action)[0]

    return ensemble.make(network.init, jax.vmap(q, (None, 0, 0)), num_critics)


def value(spec: EnvironmentSpec, layers: tuple[int, ...], **options: Any) -> Network:
    """A value `[]` of one observation.

    Args:
      spec: of the problem.
      layers: hidden sizes.
      **options: further fields of `torsos.MLP`.
    """
    network = mlp(torsos.flat_size(spec.observation), (*layers, 1), **options)

    def apply(params: Params, observation: Observation) -> Array:
        return network.apply(params, torsos.flat(observation))[0]

    return Network(init=network.init, apply=apply)
