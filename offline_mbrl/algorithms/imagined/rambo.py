"""RAMBO (arXiv:2204.12581): a policy against a model that is trained to be its adversary.

Before each refresh of the imagined rows the model takes `adversary_updates` steps that lower the
likelihood of transitions better than average for the policy, while it stays likely on the data.

Departures: minibatches and evaluations of the model's first fit (`models.fitting`), members that
all see the same rows of the data afterwards, observations in raw units, and a policy that starts
untrained rather than cloned. Of the released code it does not take over: a member that is drawn for
each row once and for all, adversarial rollouts that go on after the end of an episode (here the row
starts again from the data), and a mixture's likelihood whose exponentials underflow. The weight 0,
the released choice for four of twelve data sets, leaves the adversary out: compare with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import Networks
from offline_mbrl.models import explicit
from offline_mbrl.networks import optimizers
from offline_mbrl.rollouts import shares
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.settings import Scope, at_least, read_if
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    ModelParams,
    Observation,
    Params,
    PyTree,
    Transition,
)

pretrain = assembly.pretrain


def _has_adversary(scope: Scope) -> bool:
    return scope.config.adversary_coef > 0


if_adversary = read_if(_has_adversary, "an adversary (adversary_coef above 0)")
POLICY = sac.Config(actor_learning_rate=1e-4, temperature_learning_rate=1e-4)
ROLLOUTS = ImaginationConfig(real_fraction=0.5)


@dataclass(frozen=True)
class Config(assembly.Config):
    """The released settings of most data sets; those of each are presets."""

    num_updates: Annotated[int, at_least(1)] = 2_000_000
    policy: sac.Config = field(default_factory=lambda: POLICY)
    imagination: ImaginationConfig = field(default_factory=lambda: ROLLOUTS)
    adversary_coef: Annotated[float, at_least(0)] = 3e-4  # lambda; 0: the model stays as fitted
    adversary_updates: Annotated[int, at_least(1), if_adversary] = 1_000  # before each refresh
    adversary_learning_rate: Annotated[float, at_least(0), if_adversary] = 3e-4  # Adam
    adversary_batch_size: Annotated[int, at_least(2), if_adversary] = 256  # rollouts, and rows


# (horizon, lambda) of the released configs, on v2 data
_RELEASED = {
    "halfcheetah_random": (5, 0.0),
    "halfcheetah_medium": (5, 3e-4),
    "halfcheetah_medium_replay": (5, 3e-4),
    "halfcheetah_medium_expert": (5, 3e-4),
    "hopper_random": (2, 3e-4),
    "hopper_medium": (5, 3e-4),
    "hopper_medium_replay": (2, 3e-4),
    "hopper_medium_expert": (5, 3e-4),
    "walker2d_random": (5, 0.0),
    "walker2d_medium": (5, 0.0),
    "walker2d_medium_replay": (5, 0.0),
    "walker2d_medium_expert": (2, 3e-4),
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: {
        "termination": f"d4rl_mujoco_{name.partition('_')[0]}",
        "imagination": replace(ROLLOUTS, horizon=horizon),
        "adversary_coef": coef,
    }
    for name, (horizon, coef) in _RELEASED.items()
}


class State(NamedTuple):
    """The policy's learner, and the model that opposes it."""

    learner: actor_critic.State
    network: Params  # of the model
    opt_state: optax.OptState


# --- the equation ---


def adversary_loss(advantage: Array, log_prob: Array) -> Array:
    """`mean(A log p(s', r | s, a))` over a batch, `[]`: better transitions lose probability.

    Args:
      advantage: `[B]`, standardized here, without gradient.
      log_prob: `[B]` of the transitions that were sampled.

    Source: arXiv:2204.12581, proposition 2, in its released form.
    """
    centered = advantage - jnp.mean(advantage)
    scaled = centered / jnp.maximum(jnp.std(advantage), 1e-6)
    return jnp.mean(jax.lax.stop_gradient(scaled) * log_prob)


# --- an update of the model ---


class Adversary(NamedTuple):
    """What the model's updates read and never change."""

    config: Config
    model: DynamicsModel
    networks: Networks
    optimizer: optax.GradientTransformation


class Opposed(NamedTuple):
    """Transitions of the policy in the model, and how much better than expected they are."""

    observation: Observation  # [B, ...]
    action: Action  # [B, A]
    next_observation: Observation  # [B, ...]
    reward: Array  # [B]
    discount: Array  # [B]
    advantage: Array  # [B]


def _act(
    adversary: Adversary,
    params: ModelParams,
    learner: actor_critic.State,
    observation: Observation,
    key: Key,
) -> Opposed:
    """One step of the policy from each observation, judged by the least critic."""
    key_action, key_step = jax.random.split(key)
    agent = actor_critic.agent_of(adversary.networks, learner)
    action, _ = actor_critic.sample_actions(agent.policy, observation, key_action)

    def predict(observation: Observation, action: Action, key: Key) -> Any:
        key_reset, key_step = jax.random.split(key)
        state = adversary.model.reset(params, observation, key_reset)
        return adversary.model.step(params, state, action, key_step)[1]

    predicted = jax.vmap(predict)(observation, action, jax.random.split(key_step, len(action)))
    after = predicted.observation
    greedy = jax.vmap(lambda observation: agent.policy(observation).mode())(after)
    next_value = jnp.min(agent.critics(after, greedy), axis=0)
    value = jnp.min(agent.critics(observation, action), axis=0)
    gamma = adversary.config.policy.gamma
    opposed = Opposed(
        observation=observation,
        action=action,
        next_observation=after,
        reward=predicted.reward,
        discount=predicted.discount,
        advantage=predicted.reward + gamma * predicted.discount * next_value - value,
    )
    return jax.lax.stop_gradient(opposed)


def _loss(
    adversary: Adversary, params: ModelParams, opposed: Opposed, data: Transition, key: Key
) -> tuple[Array, Metrics]:
    """The weighed `adversary_loss` and the model's own loss on the data."""

    def log_prob(opposed: Opposed) -> Array:
        densities = adversary.model.log_prob(
            params, opposed.observation, opposed.action, opposed.next_observation, opposed.reward
        )
        return explicit.mixture_log_prob(densities, params.elites)

    oppose = adversary_loss(opposed.advantage, jax.vmap(log_prob)(opposed))
    num_members = adversary.config.dynamics.num_members
    rows = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_members), data._replace(extras=()))
    fit, _ = adversary.model.loss(params, rows, key)
    metrics = {"adversary/loss": oppose, "adversary/model_loss": fit}
    return adversary.config.adversary_coef * oppose + fit, metrics


def oppose(
    adversary: Adversary, state: State, fitted: ModelParams, dataset: PyTree, key: Key
) -> tuple[State, Metrics]:
    """`adversary_updates` of the model along rollouts of the policy.

    Args:
      adversary: what stays the same.
      state: of policy and model.
      fitted: the model before any of them: its statistics and elites.
      dataset: the whole dataset.
      key: consumed.
    """
    config = adversary.config
    rows = memory.Transitions(config.adversary_batch_size)

    def update(carry: tuple[State, Observation], step: tuple[Array, Key]) -> Any:
        (state, observation), (t, key) = carry, step
        key_start, key_act, key_data, key_loss = jax.random.split(key, 4)
        start = rows(dataset, None, key_start).observation
        params = fitted._replace(network=state.network)
        is_first = t % config.imagination.horizon == 0
        observation = jnp.where(is_first, start, observation)
        opposed = _act(adversary, params, state.learner, observation, key_act)
        data = rows(dataset, None, key_data)

        def loss(network: Params) -> tuple[Array, Metrics]:
            params = fitted._replace(network=network)
            return _loss(adversary, params, opposed, data, key_loss)

        gradient, metrics = jax.grad(loss, has_aux=True)(state.network)
        network, opt_state = optimizers.descend(
            adversary.optimizer, gradient, state.opt_state, state.network
        )
        alive = opposed.discount[:, None] > 0
        observation = jnp.where(alive, opposed.next_observation, start)
        return (state._replace(network=network, opt_state=opt_state), observation), metrics

    start = rows(dataset, None, jax.random.fold_in(key, 0)).observation
    keys = jax.random.split(key, config.adversary_updates)
    steps = (jnp.arange(config.adversary_updates), keys)
    (state, _), metrics = jax.lax.scan(update, (state, start), steps)
    return state, jax.tree.map(jnp.mean, metrics)


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "rambo", spec)
    policy = replace(config.policy, num_updates=config.num_updates)
    learner = assembly.beside_rollouts(
        sac.make(policy, spec), config, spec, spread=shares.by_member
    )
    if config.adversary_coef == 0:
        return learner
    adversary = Adversary(
        config=config,
        model=assembly.dynamics(config, spec),
        networks=sac.networks(policy, spec),
        optimizer=optax.adam(config.adversary_learning_rate),
    )
    return with_adversary(learner, adversary)


def with_adversary(learner: Learner, adversary: Adversary) -> Learner:
    """The learner whose refresh first updates the model.

    Args:
      learner: soft actor-critic beside rollouts in the stage `model`'s model.
      adversary: the model, and how it is updated.
    """

    def init(key: Key, example: Transition, context: Context) -> State:
        network = context.upstream["model"].network
        return State(
            learner=learner.init(key, example, context),
            network=network,
            opt_state=adversary.optimizer.init(network),
        )

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        inner, metrics = learner.step(state.learner, context, batch, key)
        return state._replace(learner=inner), metrics

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        assert learner.validate is not None
        return learner.validate(state.learner, context, batch, key)

    def refresh(
        state: State, context: Context, dataset: PyTree, cache: PyTree, update: Array, key: Key
    ) -> tuple[State, PyTree, Metrics]:
        key_oppose, key_refresh = jax.random.split(key)
        fitted = context.upstream["model"]
        state, metrics = oppose(adversary, state, fitted, dataset, key_oppose)
        current = {**context.upstream, "model": fitted._replace(network=state.network)}
        inner, cache, more = learner.refresh(
            state.learner, context._replace(upstream=current), dataset, cache, update, key_refresh
        )
        return state._replace(learner=inner), cache, {**metrics, **more}

    def policy_params(state: State, context: Context) -> Params:
        return learner.policy_params(state.learner, context)

    return learner._replace(
        init=init, step=step, validate=validate, refresh=refresh, policy_params=policy_params
    )
