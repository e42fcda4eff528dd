"""Soft actor-critic with N critics (arXiv:1801.01290, arXiv:1812.05905), offline or on the batches of a collector.

Two critics are the paper's; more are SAC-N (arXiv:2110.01548). All losses of an update are taken at the parameters
before it; the target critics then follow the updated ones.

Differences: the log standard deviation is clipped to [-5, 2] (as in SAC policies released for off-policy evaluation;
the authors' lower bound is -20). Observations enter in raw units, whatever the statistics say: a policy then needs no
data to act, and simulated states are of moderate size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.networks import distributions, ensemble, heads, torsos
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Learner,
    Metrics,
    PyTree,
    Transition,
    UsageError,
    action_size,
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The second paper's table 1 unless said otherwise."""

    num_updates: int = 1_000_000
    batch_size: int = 256  # transitions per update
    gamma: float = 0.99  # discount factor
    tau: float = 0.005  # of the new critic in the target critic, each update
    actor_layers: tuple[int, ...] = (256, 256)  # ReLU
    critic_layers: tuple[int, ...] = (256, 256)  # ReLU
    num_critics: int = 2  # N; targets and the actor take the least
    actor_learning_rate: float = 3e-4  # Adam
    critic_learning_rate: float = 3e-4  # Adam
    temperature_learning_rate: float = 3e-4  # Adam
    initial_temperature: float = 1.0  # weight of entropy
    fixed_temperature: float | None = None  # instead of a learned one; 0 leaves entropy out
    target_entropy: float | None = None  # nats; None: minus the size of an action
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)  # clipped, before tanh


class State(NamedTuple):
    """Everything that changes while learning."""

    actor: PyTree
    critic: PyTree  # [N, ...]
    target_critic: PyTree  # [N, ...]
    log_temperature: Array  # []   -inf where it is fixed at 0
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    temperature_opt_state: optax.OptState


class Networks(NamedTuple):
    """The two networks as functions."""

    init_actor: Callable[[Array], PyTree]  # (key) -> params
    policy: Callable[[PyTree, PyTree], distributions.SquashedNormal]  # (params, one observation) -> distribution
    critics: ensemble.Ensemble  # apply: (params, observations [B, ...], actions [B, A]) -> [N, B]


# --- the equations, one transition ---


def target(transition: Transition, next_q: Array, next_log_prob: Array, *, gamma: float, temperature: Array) -> Array:
    """What all critics regress to, `r + gamma discount (min_i Q_i(s', a') - temperature log pi(a'|s'))`, `[]`.

    Args:
      transition: of the data.
      next_q: `[N]` target critics at the next observation and a fresh action `a'` there.
      next_log_prob: `[]` of that action.
      gamma: discount factor.
      temperature: `[]`.

    Source: arXiv:1812.05905, equations 3 and 5, with the minimum of its section 6.
    """
    chex.assert_rank([transition.reward, transition.discount, next_q, next_log_prob], [0, 0, 1, 0])
    return transition.reward + gamma * transition.discount * (jnp.min(next_q) - temperature * next_log_prob)


def critic_loss(q: Array, target: Array) -> Array:
    """`sum_i (Q_i - target)^2 / 2`, `[]`, from `[N]` critics and a target `[]`: each critic learns as if alone."""
    chex.assert_rank([q, target], [1, 0])
    return 0.5 * jnp.sum(jnp.square(q - target))


def actor_loss(q: Array, log_prob: Array, *, temperature: Array) -> Array:
    """`temperature log pi(a|s) - min_i Q_i(s, a)`, `[]`, at the policy's own action (arXiv:1812.05905, equation 7).

    Args:
      q: `[N]` critics at that action.
      log_prob: `[]` of it.
      temperature: `[]`.
    """
    chex.assert_rank([q, log_prob], [1, 0])
    return temperature * log_prob - jnp.min(q)


def temperature_loss(log_temperature: Array, log_prob: Array, *, target_entropy: float) -> Array:
    """`-log temperature (log pi(a|s) + target entropy)`, `[]`: up while the policy is too certain, down otherwise.

    Source: arXiv:1812.05905, equation 18, in its released form, by the logarithm.
    """
    return -log_temperature * (log_prob + target_entropy)


# --- assembly ---


def networks(config: Config, spec: EnvironmentSpec) -> Networks:
    """Actor and critics of these sizes.

    Raises:
      UsageError: the actions are discrete.
    """
    size = action_size(spec, "sac")
    num_inputs = sum(leaf.size for leaf in jax.tree.leaves(spec.observation))
    actor = torsos.MLP((*config.actor_layers, 2 * size))
    critic = torsos.MLP((*config.critic_layers, 1))

    def policy(params: PyTree, observation: PyTree) -> distributions.SquashedNormal:
        outputs = torsos.apply(actor, params, torsos.flat(observation))
        return heads.squashed_normal(outputs, lambda raw: jnp.clip(raw, *config.log_std_bounds))

    def one(params: PyTree, observation: PyTree, action: Array) -> Array:
        return torsos.apply(critic, params, jnp.concatenate([torsos.flat(observation), action]))[0]

    return Networks(
        init_actor=lambda key: torsos.init(actor, key, jnp.zeros(num_inputs)),
        policy=policy,
        critics=ensemble.make(
            lambda key: torsos.init(critic, key, jnp.zeros(num_inputs + size)),
            jax.vmap(one, (None, 0, 0)), config.num_critics),
    )  # fmt: skip


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    _check(config)
    nets, size = networks(config, spec), action_size(spec, "sac")
    target_entropy = -float(size) if config.target_entropy is None else config.target_entropy
    for_actor, for_critic, for_temperature = (optax.adam(rate) for rate in (
        config.actor_learning_rate, config.critic_learning_rate, config.temperature_learning_rate))  # fmt: skip

    def init(key: Array, example: Transition, context: Context) -> State:
        del example, context  # raw observations
        key_actor, key_critic = jax.random.split(key)
        actor, critic = nets.init_actor(key_actor), nets.critics.init(key_critic)
        first = config.initial_temperature if config.fixed_temperature is None else config.fixed_temperature
        log_temperature = jnp.log(jnp.asarray(first, jnp.float32))
        return State(actor, critic, critic, log_temperature, for_actor.init(actor), for_critic.init(critic),
                     for_temperature.init(log_temperature))  # fmt: skip

    def learn_temperature(state: State, log_prob: Array) -> tuple[Array, optax.OptState]:
        loss = lambda x: jnp.mean(jax.vmap(  # noqa: E731
            lambda one: temperature_loss(x, one, target_entropy=target_entropy))(log_prob))  # fmt: skip
        gradient = jax.grad(loss)(state.log_temperature)
        return _descend(for_temperature, gradient, state.temperature_opt_state, state.log_temperature)

    def step(state: State, context: Context, batch: Transition, key: Array) -> tuple[State, Metrics]:
        del context
        key_target, key_actor = jax.random.split(key)
        targets = _targets(config, nets, state, batch, key_target)
        (critic_value, q), critic_gradient = jax.value_and_grad(_critic_objective, has_aux=True)(
            state.critic, nets, batch, targets)  # fmt: skip
        # With respect to the actor alone: no gradient of the critics' weights is computed.
        (actor_value, log_prob), actor_gradient = jax.value_and_grad(_actor_objective, has_aux=True)(
            state.actor, nets, state, batch, key_actor)  # fmt: skip
        actor, actor_opt_state = _descend(for_actor, actor_gradient, state.actor_opt_state, state.actor)
        critic, critic_opt_state = _descend(for_critic, critic_gradient, state.critic_opt_state, state.critic)
        log_temperature, temperature_opt_state = state.log_temperature, state.temperature_opt_state
        if config.fixed_temperature is None:
            log_temperature, temperature_opt_state = learn_temperature(state, log_prob)
        metrics = {
            "loss/total": critic_value + actor_value, "loss/critic": critic_value, "loss/actor": actor_value,
            "temperature": jnp.exp(state.log_temperature), "entropy": -jnp.mean(log_prob), "q/mean": q,
        }  # fmt: skip
        target_critic = optax.incremental_update(critic, state.target_critic, config.tau)
        return State(actor, critic, target_critic, log_temperature, actor_opt_state, critic_opt_state,
                     temperature_opt_state), metrics  # fmt: skip

    def validate(state: State, context: Context, batch: Transition, key: Array) -> Metrics:
        return step(state, context, batch, key)[1]

    return Learner(
        sample=memory.Transitions(config.batch_size), init=init, step=step, validate=validate,
        policy=distributions.as_policy(nets.policy), policy_params=lambda state, context: state.actor,
    )  # fmt: skip


# --- over a batch ---


def _act(nets: Networks, actor: PyTree, observations: PyTree, key: Array) -> tuple[Array, Array]:
    """Fresh actions `[B, A]` and their log probabilities `[B]`."""
    keys = jax.random.split(key, jax.tree.leaves(observations)[0].shape[0])
    return jax.vmap(lambda seen, seed: nets.policy(actor, seen).sample_and_log_prob(seed=seed))(observations, keys)


def _targets(config: Config, nets: Networks, state: State, batch: Transition, key: Array) -> Array:
    """`[B]`."""
    action, log_prob = _act(nets, state.actor, batch.next_observation, key)
    next_q = nets.critics.apply(state.target_critic, batch.next_observation, action)
    temperature = jnp.exp(state.log_temperature)
    one = lambda *args: target(*args, gamma=config.gamma, temperature=temperature)  # noqa: E731
    return jax.vmap(one, (0, 1, 0))(batch, next_q, log_prob)


def _critic_objective(critic: PyTree, nets: Networks, batch: Transition, targets: Array) -> tuple[Array, Array]:
    """Mean loss, and the mean over critics and batch."""
    q = nets.critics.apply(critic, batch.observation, batch.action)
    return jnp.mean(jax.vmap(critic_loss, (1, 0))(q, targets)), jnp.mean(q)


def _actor_objective(actor: PyTree, nets: Networks, state: State, batch: Transition, key: Array) -> tuple[Array, Array]:
    """Mean loss, and the log probabilities `[B]` of the actions drawn."""
    action, log_prob = _act(nets, actor, batch.observation, key)
    q = nets.critics.apply(state.critic, batch.observation, action)
    temperature = jnp.exp(state.log_temperature)
    return jnp.mean(jax.vmap(lambda *args: actor_loss(*args, temperature=temperature), (1, 0))(q, log_prob)), log_prob


def _descend(
    optimizer: optax.GradientTransformation, gradient: PyTree, opt_state: optax.OptState, params: PyTree
) -> tuple[PyTree, optax.OptState]:
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _check(config: Config) -> None:
    low, high = config.log_std_bounds
    if config.num_critics < 1 or not low < high:
        raise UsageError(f"sac: give at least 1 critic and increasing log_std_bounds, got {config.num_critics} and "
                         f"{config.log_std_bounds}")  # fmt: skip
    if not config.initial_temperature > 0 or not (config.fixed_temperature or 0.0) >= 0:
        raise UsageError(f"sac: initial_temperature must be above 0 and fixed_temperature at least 0, got "
                         f"{config.initial_temperature} and {config.fixed_temperature}")  # fmt: skip
