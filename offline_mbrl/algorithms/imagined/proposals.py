"""Policies of rollouts that are made before any policy is learned: uniform, or like the data's.

On data with time reversed a proposal is a reverse policy, `p(a | s')`: which actions led here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import jax
import optax

from offline_mbrl.data import memory
from offline_mbrl.learners import bc
from offline_mbrl.learners.parts import behavior
from offline_mbrl.networks import conditional_vae, optimizers, torsos
from offline_mbrl.rollouts import imagination
from offline_mbrl.settings import Scope, at_least, read_if, sizes
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Params,
    Policy,
    Stage,
    Transition,
    action_size,
    whole,
)

NAME = "proposal"  # of the stage


def _is_fitted(scope: Scope) -> bool:
    return scope.config.kind != "uniform"


if_fitted = read_if(_is_fitted, "a proposal that is fitted (kind autoencoder or clone)")


@dataclass(frozen=True)
class ProposalConfig:
    """ROMI's released code."""

    # Actions of a conditional autoencoder, of a cloned squashed normal, or uniform ones
    kind: Literal["autoencoder", "clone", "uniform"] = "autoencoder"
    num_updates: Annotated[int, at_least(1), if_fitted] = 500_000
    batch_size: Annotated[int, at_least(1), if_fitted] = 100  # transitions per update
    layers: Annotated[tuple[int, ...], sizes(), if_fitted] = (750, 750)  # ReLU
    learning_rate: Annotated[float, at_least(0), if_fitted] = 1e-3  # Adam


class Proposal(NamedTuple):
    """A policy, the stages that fit it, and its parameters."""

    policy: Policy
    stages: dict[str, Stage]
    params: Callable[[Context], Params]  # of what the stages handed on


# (dataset on the host) -> what a proposal is fitted to
Prepare = Callable[[memory.Dataset], memory.Dataset]


def make(config: ProposalConfig, spec: EnvironmentSpec, *, prepare: Prepare = whole) -> Proposal:
    """The proposal of a config.

    Args:
      config: of the proposal.
      spec: of the data.
      prepare: (dataset on the host) -> what it is fitted to, for example with time reversed.

    Raises:
      UsageError: the actions are discrete.
    """
    return KINDS[config.kind](config, spec, prepare)


def _uniform(config: ProposalConfig, spec: EnvironmentSpec, prepare: Prepare) -> Proposal:
    del config, prepare  # nothing is fitted
    action_size(spec, NAME)
    return Proposal(policy=imagination.uniform_policy(spec), stages={}, params=lambda context: ())


def _clone(config: ProposalConfig, spec: EnvironmentSpec, prepare: Prepare) -> Proposal:
    action_size(spec, NAME)
    density = bc.ContinuousConfig(
        layers=config.layers, learning_rate=config.learning_rate, weight_decay=0.0
    )
    cloning = bc.Config(
        num_updates=config.num_updates, batch_size=config.batch_size, continuous=density
    )
    return _fitted(bc.make(cloning, spec), config, prepare)


def _autoencoder(config: ProposalConfig, spec: EnvironmentSpec, prepare: Prepare) -> Proposal:
    vae = conditional_vae.make(
        torsos.flat_size(spec.observation), action_size(spec, NAME), config.layers
    )
    optimizer = optax.adam(config.learning_rate)

    def init(key: Key, example: Transition, context: Context) -> bc.State:
        del example, context
        params = vae.init(key)
        return bc.State(params=params, opt_state=optimizer.init(params))

    def loss(params: Params, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        return behavior.vae_loss(vae, params, batch.observation, batch.action, key)

    def step(
        state: bc.State, context: Context, batch: Transition, key: Key
    ) -> tuple[bc.State, Metrics]:
        del context
        (total, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, key
        )
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        after = bc.State(params=params, opt_state=opt_state)
        return after, {"loss/total": total, **metrics}

    def validate(state: bc.State, context: Context, batch: Transition, key: Key) -> Metrics:
        del context
        total, metrics = loss(state.params, batch, key)
        return {"loss/total": total, **metrics}

    learner = Learner(
        sample=memory.Transitions(config.batch_size),
        init=init,
        step=step,
        validate=validate,
        policy=conditional_vae.as_policy(vae),
        policy_params=lambda state, context: state.params,
    )
    return _fitted(learner, config, prepare)


KINDS: Mapping[str, Callable[[ProposalConfig, EnvironmentSpec, Prepare], Proposal]] = {
    "autoencoder": _autoencoder,
    "clone": _clone,
    "uniform": _uniform,
}


def _fitted(learner: Learner, config: ProposalConfig, prepare: Prepare) -> Proposal:
    assert isinstance(learner.policy, Policy)
    stage = Stage(
        learner=learner._replace(policy=None), num_updates=config.num_updates, prepare=prepare
    )
    return Proposal(
        policy=learner.policy,
        stages={NAME: stage},
        params=lambda context: context.upstream[NAME],
    )
