"""A model of windows and Adam to a learner, which hands on the moving average of its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.models.diffusion import denoisers, windows
from offline_mbrl.models.diffusion.window_models import WindowModel, WindowParams
from offline_mbrl.settings import at_least, between, require_valid
from offline_mbrl.types import (
    Array,
    Context,
    Key,
    Learner,
    Metrics,
    Params,
    PyTree,
    Stage,
    Trajectory,
)


@dataclass(frozen=True)
class Config:
    """Our defaults for dense networks of short windows."""

    num_updates: Annotated[int, at_least(1)] = 20_000
    batch_size: Annotated[int, at_least(1)] = 256  # windows per update
    learning_rate: Annotated[float, at_least(0)] = 1e-3  # Adam
    # Fraction of it after num_updates, along a cosine; 1: constant, as Diffuser's.
    final_learning_rate: Annotated[float, between(0, 1)] = 0.0
    average_decay: Annotated[float, between(0, 1)] = 0.999  # of parameters; Diffuser's is 0.995
    average_period: Annotated[int, at_least(1)] = 1  # updates; Diffuser's is 10
    average_start: Annotated[int, at_least(0)] = 0  # updates; Diffuser's is 2000


class State(NamedTuple):
    """Everything that changes while learning."""

    params: Params  # the network of `WindowParams`
    average: Params  # its moving average
    opt_state: optax.OptState
    count: Array  # [] int32 updates done


def make(model: WindowModel, config: Config) -> Learner:
    """The learner of a model of windows.

    Args:
      model: of w rows; batches are windows `[B, w, ...]` of the data.
      config: of the fit.

    Returns:
      A learner without a policy, whose `policy_params` are `WindowParams` with averaged parameters.

    Raises:
      UsageError: a setting is out of range; in `init`, there are no statistics of transitions.
    """
    require_valid(config, "diffusion")
    transform = optimizer(config)

    def init(key: Key, example: PyTree, context: Context) -> State:
        del example
        network = model.init(key, context.statistics).network
        return State(
            params=network,
            average=network,
            opt_state=transform.init(network),
            count=jnp.zeros((), jnp.int32),
        )

    def params(network: Params, context: Context) -> WindowParams:
        scale = windows.scale_of(model.layout, context.statistics)
        return WindowParams(network=network, scale=scale)

    def step(state: State, context: Context, batch: Trajectory, key: Key) -> tuple[State, Metrics]:
        def loss(network: Params) -> tuple[Array, Metrics]:
            return model.loss(params(network, context), batch, key)

        gradient, metrics = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        network = optax.apply_updates(state.params, updates)
        average = denoisers.moving_average(
            state.average,
            network,
            state.count,
            decay=config.average_decay,
            period=config.average_period,
            start=config.average_start,
        )
        after = State(params=network, average=average, opt_state=opt_state, count=state.count + 1)
        return after, metrics

    def validate(state: State, context: Context, batch: Trajectory, key: Key) -> Metrics:
        return model.loss(params(state.average, context), batch, key)[1]

    return Learner(
        sample=memory.Windows(config.batch_size, model.length),
        init=init,
        step=step,
        policy=None,
        policy_params=lambda state, context: params(state.average, context),
        validate=validate,
    )


def stage(
    model: WindowModel, config: Config, *, statistics: Callable[[PyTree], PyTree] | None = None
) -> Stage:
    """The fit as a stage of an algorithm, which hands on `WindowParams`.

    Args:
      model: of windows.
      config: of the fit.
      statistics: of the stage's data; None: those of the dataset.

    Raises:
      UsageError: as `make`.
    """
    return Stage(learner=make(model, config), num_updates=config.num_updates, statistics=statistics)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, its learning rate along a cosine to a fraction of itself."""
    if config.final_learning_rate == 1.0:
        return optax.adam(config.learning_rate)
    rate = optax.cosine_decay_schedule(
        config.learning_rate, config.num_updates, alpha=config.final_learning_rate
    )
    return optax.adam(rate)
