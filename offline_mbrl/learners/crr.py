"""Critic regularized regression (arXiv:2006.15134): the data's actions cloned by their advantage.

A critic of the policy, distributional or not, weighs each logged action against K actions of the
policy itself. AWAC (arXiv:2006.09359) is the preset of that name.

Departures: the support of the distributional critic is a setting (`value_range`), since RL
Unplugged's 21 atoms on [0, 100] fit rewards in [0, 1] alone; layers are dense with a normalization
after each activation rather than recurrent or residual; the acting policy is the trained one rather
than its lagging copy, greedy, and not resampled by the critic (CWP). AWAC's weights are clipped
exponentials, as in CORL, rather than normalized over a batch. Of public code it does not take over:
rewards `[B]` that meet values `[B, 1]`, so that every target has the batch's mean reward, and a
policy that samples at evaluation.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.parts import actor_critic, candidates, critic_kinds
from offline_mbrl.learners.parts import networks as parts
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs, without_density
from offline_mbrl.settings import Scope, above, at_least, between, increasing, read_if, sizes
from offline_mbrl.targets import weights
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Transition,
)


def _is_categorical(scope: Scope) -> bool:
    return scope.config.critic == "categorical"


def _is_mixture(scope: Scope) -> bool:
    return scope.config.policy == "mixture"


def _is_normal(scope: Scope) -> bool:
    return scope.config.policy == "normal"


def _is_exponential(scope: Scope) -> bool:
    return scope.config.weight == "exponential"


if_categorical = read_if(_is_categorical, "critic categorical")
if_exponential = read_if(_is_exponential, "weight exponential")


@dataclass(frozen=True)
class Config:
    """RL Unplugged's learner (its notebook) unless said otherwise."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    batch_size: Annotated[int, at_least(1)] = 256  # transitions per update
    gamma: Annotated[float, between(0, 1)] = 0.99  # discount factor
    weight: Literal["exponential", "binary"] = "exponential"  # f of the advantage
    advantage: Literal["mean", "max"] = "mean"  # over the policy's actions
    num_actions: Annotated[int, at_least(1)] = 4  # of the policy, for the advantage (Acme)
    temperature: Annotated[float, above(0), if_exponential] = 1.0  # beta
    maximum_weight: Annotated[float, above(0), if_exponential] = 20.0
    critic: Literal["categorical", "squared"] = "categorical"
    num_critics: Annotated[int, at_least(1)] = 1  # the least counts
    num_atoms: Annotated[int, at_least(2), if_categorical] = 51  # D4PG
    value_range: Annotated[tuple[float, float], increasing(), if_categorical] = (0.0, 100.0)
    policy: Literal["mixture", "normal"] = "mixture"
    num_components: Annotated[int, at_least(1), read_if(_is_mixture, "policy mixture")] = 5
    log_std_bounds: Annotated[
        tuple[float, float], increasing(), read_if(_is_normal, "policy normal")
    ] = (-5.0, 2.0)
    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU; Acme
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256)  # ReLU; Acme
    normalize_layers: bool = True
    actor_learning_rate: Annotated[float, at_least(0)] = 1e-4  # Adam
    critic_learning_rate: Annotated[float, at_least(0)] = 1e-4  # Adam
    max_grad_norm: Annotated[float, at_least(0)] = 40.0  # 0: gradients are not clipped
    target_period: Annotated[int, at_least(1)] = 100  # updates between moves of the targets
    tau: Annotated[float, between(0, 1)] = 1.0  # of the new networks in the targets, each move
    lagging_policy: bool = True  # the next action is a lagging copy's
    inputs: InputConfig = field(default_factory=InputConfig)


PRESETS = {
    "exponential": {},
    "binary": {"weight": "binary"},
    "binary_max": {"weight": "binary", "advantage": "max"},
    "rl_unplugged": {"num_atoms": 21},
    "acme": {
        "critic": "squared",
        "normalize_layers": False,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "max_grad_norm": 0.0,
    },
    "awac": {  # CORL on D4RL
        "num_actions": 1,
        "maximum_weight": 100.0,
        "critic": "squared",
        "num_critics": 2,
        "policy": "normal",
        "actor_layers": (256, 256, 256),
        "critic_layers": (256, 256, 256),
        "normalize_layers": False,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "max_grad_norm": 0.0,
        "target_period": 1,
        "tau": 0.005,
        "lagging_policy": False,
        "inputs": InputConfig(standardize_observations=True),
    },
}


# --- the equation, one transition ---


def advantage(q: Array, sampled_q: Array, reduce: Callable[[Array], Array]) -> Array:
    """`min_i Q_i(s, a) - reduce_k min_i Q_i(s, a_k)`, `[]`.

    Args:
      q: `[N]` critics at the data's action.
      sampled_q: `[N, K]` critics at actions of the policy.
      reduce: their mean or their maximum.

    Source: arXiv:2006.15134, section 3.
    """
    chex.assert_rank([q, sampled_q], [1, 2])
    return jnp.min(q) - reduce(jnp.min(sampled_q, axis=0))


# --- the parts of an update ---


def backup_at_policy(critic: critic_kinds.Critic) -> actor_critic.Backup:
    """The critic's backup at one action of the target policy."""

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Array:
        del context
        actions = candidates.sample(agent.target_policy, batch.next_observation, key, 1)
        return critic.backup(agent, batch, actions[:, 0])

    return backup


def weighted_cloning(
    weigh: Callable[[Array], Array], reduce: Callable[[Array], Array], num_actions: int
) -> actor_critic.ActorObjective:
    """The mean of `-weigh(advantage) log pi(a|s)` over a batch.

    Args:
      weigh: advantages to weights, elementwise.
      reduce: the mean or the maximum of values `[K]`.
      num_actions: K of the policy.
    """

    def objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        del context
        actions = candidates.sample(agent.policy, batch.observation, key, num_actions)
        sampled_q = candidates.evaluate(agent.critics, batch.observation, actions)
        q = agent.critics(batch.observation, batch.action)
        over_batch = jax.vmap(lambda q, sampled_q: advantage(q, sampled_q, reduce), 1)
        return candidates.cloning_loss(agent.policy, batch, weigh(over_batch(q, sampled_q)))

    return objective


# --- assembly ---


def critic(config: Config, spec: EnvironmentSpec) -> critic_kinds.Critic:
    """The kind of critic that a config asks for.

    Raises:
      UsageError: the actions are discrete.
    """
    options = {"normalize_layers": config.normalize_layers}
    layers = config.critic_layers
    if config.critic == "squared":
        critics = parts.critics(spec, "crr", layers, config.num_critics, **options)
        return critic_kinds.squared(critics, gamma=config.gamma)
    network = parts.critic(spec, "crr", layers, config.num_atoms, **options)
    support = jnp.linspace(*config.value_range, config.num_atoms)
    return critic_kinds.distributional(network, config.num_critics, support, gamma=config.gamma)


def actor(config: Config, spec: EnvironmentSpec) -> parts.Network:
    """The policy that a config asks for.

    Raises:
      UsageError: the actions are discrete.
    """
    options = {"normalize_layers": config.normalize_layers}
    layers = config.actor_layers
    if config.policy == "mixture":
        return parts.mixture_actor(spec, "crr", layers, config.num_components, **options)
    return parts.clipped_normal_actor(spec, "crr", layers, config.log_std_bounds, **options)


def weight(config: Config) -> Callable[[Array], Array]:
    """The weight of an advantage that a config asks for, elementwise."""
    if config.weight == "binary":
        return weights.indicator
    return functools.partial(
        weights.exponential, temperature=config.temperature, maximum=config.maximum_weight
    )


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "crr", spec)
    policy = actor(config, spec)
    values = critic(config, spec)
    reduce = {"mean": jnp.mean, "max": jnp.max}[config.advantage]
    follow = actor_critic.polyak(config.tau, period=config.target_period)

    def optimizer(rate: float) -> optax.GradientTransformation:
        if not config.max_grad_norm:
            return optax.adam(rate)
        return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate))

    return Method(
        networks=Networks(
            init_actor=policy.init,
            policy=policy.apply,
            init_critics=values.init,
            critics=values.q,
        ),
        backup=backup_at_policy(values),
        regression=values.regression,
        actor_objective=weighted_cloning(weight(config), reduce, config.num_actions),
        actor_optimizer=optimizer(config.actor_learning_rate),
        critic_optimizer=optimizer(config.critic_learning_rate),
        follow=follow,
        follow_actor=follow if config.lagging_policy else None,
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner. Its policy has no density: actions are clipped.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    learner = actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
    return with_inputs(without_density(learner), config.inputs)
