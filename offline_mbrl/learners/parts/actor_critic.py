"""Actor-critic learning with N critics: one update, whose parts are arguments.

An update regresses the critics to a backup, lets the actor descend its objective, and moves the
target networks. A method is three functions of `(agent, context, batch, key)`:

* `backup`: what the critics regress to, by squared error or by a `regression` of the method's own;
* `critic_regularizer`: a loss beside that regression (CQL's, COMBO's, EDAC's, a value network's);
* `actor_objective`: what the actor descends.

Losses of an update are taken at the parameters before it; targets then follow the updated ones.

A method with more networks keeps them in the parameters of the critics (a value network, a dual
variable) or of the actor (a behavior model), nested dicts that its `Networks` alone reads.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.networks import distributions, optimizers
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    PyTree,
    Transition,
)


class Networks(NamedTuple):
    """Actor and critics as functions of their parameters."""

    init_actor: Callable[[Key], Params]
    policy: Callable[[Params, Observation], Any]  # one observation -> distribution of actions
    init_critics: Callable[[Key], Params]
    # (params, observations [B, ...], actions [B, A]) -> [N, B]
    critics: Callable[[Params, Observation, Action], Array]


class State(NamedTuple):
    """What an update changes."""

    actor: Params
    target_actor: Params | None  # None: the actor is its own target
    critic: Params
    target_critic: Params
    log_temperature: Array  # []   -inf where it is fixed at 0
    actor_opt_state: optax.OptState
    critic_opt_state: optax.OptState
    temperature_opt_state: optax.OptState
    num_updates: Array  # [] int32


class Agent(NamedTuple):
    """The networks with the parameters of one state, as the parts of an update see them.

    In a loss, the parameters that it is differentiated by are those of the loss's own network.
    """

    policy: Callable[[Observation], Any]  # one observation -> distribution of actions
    critics: Callable[[Observation, Action], Array]  # ([B, ...], [B, A]) -> [N, B]
    target_policy: Callable[[Observation], Any]
    target_critics: Callable[[Observation, Action], Array]
    temperature: Array  # []
    state: State  # for parts that read more: other networks, the number of updates


class ActorLoss(NamedTuple):
    """What an actor descends, and what is reported of it."""

    loss: Array  # []
    log_prob: Array | None = None  # [B] of the actions drawn; a learned temperature needs it
    metrics: Mapping[str, Array] = {}


# (agent, context, batch, key) -> [B], or [N, B] where each critic has a target of its own, or what
# a method's own regression reads
Backup = Callable[[Agent, Context, Transition, Key], PyTree]
# (agent, context, batch, key) -> (loss [], metrics)
CriticRegularizer = Callable[[Agent, Context, Transition, Key], tuple[Array, Metrics]]
# (agent, batch, what `backup` returned) -> loss []
Regression = Callable[[Agent, Transition, PyTree], Array]
ActorObjective = Callable[[Agent, Context, Transition, Key], ActorLoss]
# (online params, target params, updates done) -> target params
Follow = Callable[[Params, Params, Array], Params]


# --- equations, one transition ---


def critic_loss(q: Array, target: Array) -> Array:
    """`sum_i (Q_i - target)^2 / 2`, `[]`: each critic learns as if alone.

    Args:
      q: `[N]` critics.
      target: `[]`, or `[N]` one for each.
    """
    chex.assert_rank([q, target], [1, {0, 1}])
    return 0.5 * jnp.sum(jnp.square(q - target))


def temperature_loss(log_temperature: Array, log_prob: Array, *, target_entropy: float) -> Array:
    """`-log temperature (log pi(a|s) + target entropy)`: falls while the policy is too random.

    Elementwise in `log_prob`. Source: arXiv:1812.05905, equation 18, in its released form, by the
    logarithm.
    """
    return -log_temperature * (log_prob + target_entropy)


def squared_regression(agent: Agent, batch: Transition, targets: Array) -> Array:
    """The mean of `critic_loss` over a batch, `[]`.

    Args:
      agent: whose critics learn.
      batch: `[B]` transitions.
      targets: `[B]` or `[N, B]`.
    """
    q = agent.critics(batch.observation, batch.action)
    return jnp.mean(jax.vmap(critic_loss, (1, targets.ndim - 1))(q, targets))


# --- a method ---


class Temperature(NamedTuple):
    """The weight of entropy: learned where there is an optimizer, else fixed."""

    initial: float = 0.0
    target_entropy: float = 0.0  # nats
    optimizer: optax.GradientTransformation | None = None


class Method(NamedTuple):
    """A method of the family."""

    networks: Networks
    backup: Backup
    actor_objective: ActorObjective
    actor_optimizer: optax.GradientTransformation
    critic_optimizer: optax.GradientTransformation
    follow: Follow  # of the target critics
    regression: Regression = squared_regression
    # (what `backup` returned) -> metrics
    backup_metrics: Callable[[PyTree], Metrics] | None = None
    critic_regularizer: CriticRegularizer | None = None
    temperature: Temperature = Temperature()
    follow_actor: Follow | None = None  # of the target actor; None: there is none
    actor_period: int = 1  # updates of the critics for each of the actor and its temperature


# --- target networks ---


def polyak(tau: float, *, period: int = 1) -> Follow:
    """Targets that take `tau` of the online parameters at every `period`-th update."""

    def follow(online: Params, target: Params, num_updates: Array) -> Params:
        moved = optax.incremental_update(online, target, tau)
        if period == 1:
            return moved
        return optax.periodic_update(moved, target, num_updates, period)

    return follow


def periodic(period: int) -> Follow:
    """Targets that are copied from the online parameters at every `period`-th update."""
    return polyak(1.0, period=period)


# --- actions over a batch ---


def sample_actions(
    policy: Callable[[Observation], Any], observations: Observation, key: Key
) -> tuple[Action, Array]:
    """An action of the policy at each observation.

    Args:
      policy: one observation to a distribution.
      observations: `[B, ...]`.
      key: consumed.

    Returns:
      Actions `[B, A]` and their log probabilities `[B]`.
    """
    keys = jax.random.split(key, jax.tree.leaves(observations)[0].shape[0])

    def sample(observation: Observation, key: Key) -> tuple[Action, Array]:
        return policy(observation).sample_and_log_prob(seed=key)

    return jax.vmap(sample)(observations, keys)


def agent_of(networks: Networks, state: State) -> Agent:
    """The networks at the parameters of a state."""
    target_actor = state.actor if state.target_actor is None else state.target_actor

    return Agent(
        policy=functools.partial(networks.policy, state.actor),
        critics=functools.partial(networks.critics, state.critic),
        target_policy=functools.partial(networks.policy, target_actor),
        target_critics=functools.partial(networks.critics, state.target_critic),
        temperature=jnp.exp(state.log_temperature),
        state=state,
    )


# --- assembly ---


def make(method: Method, sample: Callable[[PyTree, PyTree, Key], Transition]) -> Learner:
    """The learner of a method.

    It acts by the networks' policy; replace `policy` and `policy_params` for another way.

    Args:
      method: its networks, its equations and its periods.
      sample: draws batches; see `types.Learner`.
    """

    def init(key: Key, example: Transition, context: Context) -> State:
        del example, context  # sizes are those of the networks
        return _init(method, key)

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        return _step(method, state, context, batch, key)

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        losses = _losses(method, state, context, batch, key)
        _, critic_metrics = losses.critic(state.critic)
        _, actor_loss = losses.actor(state.actor)
        return _metrics(state, critic_metrics, actor_loss)

    return Learner(
        sample=sample,
        init=init,
        step=step,
        validate=validate,
        policy=distributions.as_policy(method.networks.policy),
        policy_params=actor_params,
    )


def actor_params(state: State, context: Context) -> Params:
    """Parameters of the actor."""
    del context
    return state.actor


def _init(method: Method, key: Key) -> State:
    key_actor, key_critic = jax.random.split(key)
    actor = method.networks.init_actor(key_actor)
    critic = method.networks.init_critics(key_critic)
    log_temperature = jnp.log(jnp.asarray(method.temperature.initial, jnp.float32))
    optimizer = method.temperature.optimizer
    return State(
        actor=actor,
        target_actor=None if method.follow_actor is None else actor,
        critic=critic,
        target_critic=critic,
        log_temperature=log_temperature,
        actor_opt_state=method.actor_optimizer.init(actor),
        critic_opt_state=method.critic_optimizer.init(critic),
        temperature_opt_state=() if optimizer is None else optimizer.init(log_temperature),
        num_updates=jnp.zeros((), jnp.int32),
    )


class _Losses(NamedTuple):
    """The losses of an update, as functions of the parameters that they change."""

    critic: Callable[[Params], tuple[Array, Metrics]]
    actor: Callable[[Params], tuple[Array, ActorLoss]]


def _losses(method: Method, state: State, context: Context, batch: Transition, key: Key) -> _Losses:
    key_target, key_actor = jax.random.split(key)
    key_regularizer = jax.random.fold_in(key, 2)
    networks = method.networks
    targets = method.backup(agent_of(networks, state), context, batch, key_target)

    def critic(params: Params) -> tuple[Array, Metrics]:
        agent = agent_of(networks, state._replace(critic=params))
        loss = method.regression(agent, batch, targets)
        metrics = {"q/mean": jnp.mean(agent.critics(batch.observation, batch.action))}
        if method.backup_metrics is not None:
            metrics = {**metrics, **method.backup_metrics(targets)}
        if method.critic_regularizer is not None:
            regularizer, more = method.critic_regularizer(agent, context, batch, key_regularizer)
            loss = loss + regularizer
            metrics = {**metrics, "loss/regularizer": regularizer, **more}
        return loss, {**metrics, "loss/critic": loss}

    def actor(params: Params) -> tuple[Array, ActorLoss]:
        agent = agent_of(networks, state._replace(actor=params))
        objective = method.actor_objective(agent, context, batch, key_actor)
        return objective.loss, objective

    return _Losses(critic=critic, actor=actor)


class _Actor(NamedTuple):
    """What an update of the actor changes."""

    actor: Params
    actor_opt_state: optax.OptState
    log_temperature: Array
    temperature_opt_state: optax.OptState


def _step(
    method: Method, state: State, context: Context, batch: Transition, key: Key
) -> tuple[State, Metrics]:
    losses = _losses(method, state, context, batch, key)
    gradient, critic_metrics = jax.grad(losses.critic, has_aux=True)(state.critic)
    critic, critic_opt_state = optimizers.descend(
        method.critic_optimizer, gradient, state.critic_opt_state, state.critic
    )
    num_updates = state.num_updates + 1
    changed, actor_loss = _step_actor(method, state, losses, num_updates)
    target_actor = state.target_actor
    if method.follow_actor is not None:
        target_actor = method.follow_actor(changed.actor, state.target_actor, num_updates)
    after = State(
        **changed._asdict(),
        target_actor=target_actor,
        critic=critic,
        target_critic=method.follow(critic, state.target_critic, num_updates),
        critic_opt_state=critic_opt_state,
        num_updates=num_updates,
    )
    return after, _metrics(state, critic_metrics, actor_loss)


def _step_actor(
    method: Method, state: State, losses: _Losses, num_updates: Array
) -> tuple[_Actor, ActorLoss]:
    """The actor and its temperature, which stay as they are between two of its updates."""
    before = _Actor(**{name: getattr(state, name) for name in _Actor._fields})

    def update() -> tuple[_Actor, ActorLoss]:
        # Differentiated by the actor alone: no gradient of the critics' weights is computed.
        gradient, actor_loss = jax.grad(losses.actor, has_aux=True)(state.actor)
        actor, opt_state = optimizers.descend(
            method.actor_optimizer, gradient, state.actor_opt_state, state.actor
        )
        after = before._replace(actor=actor, actor_opt_state=opt_state)
        return _learn_temperature(method.temperature, after, actor_loss.log_prob), actor_loss

    def keep() -> tuple[_Actor, ActorLoss]:
        return before, losses.actor(state.actor)[1]

    if method.actor_period == 1:
        return update()
    return jax.lax.cond(num_updates % method.actor_period == 0, update, keep)


def _learn_temperature(temperature: Temperature, before: _Actor, log_prob: Array | None) -> _Actor:
    if temperature.optimizer is None:
        return before
    if log_prob is None:
        raise ValueError("a learned temperature needs the log_prob of the actor's objective")

    def loss(log_temperature: Array) -> Array:
        target = temperature.target_entropy
        return jnp.mean(temperature_loss(log_temperature, log_prob, target_entropy=target))

    gradient = jax.grad(loss)(before.log_temperature)
    log_temperature, opt_state = optimizers.descend(
        temperature.optimizer, gradient, before.temperature_opt_state, before.log_temperature
    )
    return before._replace(log_temperature=log_temperature, temperature_opt_state=opt_state)


def _metrics(state: State, critic_metrics: Metrics, actor_loss: ActorLoss) -> Metrics:
    """Figures of an update at the parameters before it."""
    metrics = {
        "loss/total": critic_metrics["loss/critic"] + actor_loss.loss,
        "loss/actor": actor_loss.loss,
        **critic_metrics,
        **actor_loss.metrics,
    }
    if actor_loss.log_prob is not None:
        metrics["temperature"] = jnp.exp(state.log_temperature)
        metrics["entropy"] = -jnp.mean(actor_loss.log_prob)
    return metrics
