"""Offline Q-learning with discrete actions, on vectors or Atari frames: one learner, four switches.

DQN (Nature 2015), double DQN (arXiv:1509.06461), QR-DQN (arXiv:1710.10044), REM and Ensemble-DQN
(arXiv:1907.04543), discrete BCQ (arXiv:1910.01708) and discrete CQL (arXiv:2006.04779) differ in
what the heads of an action are, which next action is backed up, how heads are mixed, and two losses
beside the regression.

Departures:

* DQN descends by Adam rather than centered RMSProp, as the offline studies of it found better.
* On vectors the clone is a network of its own, on images it shares the convolutions, as in BCQ's
  release. There its target is copied every 8000 updates, in batch_rl every 2000.
* Actions that BCQ's filter forbids count as -inf: as the least value they would tie with an allowed
  action that has it. The likeliest action is always allowed.
* REM's random weights are the release's, uniform numbers over their sum.
* Weights start as everywhere here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners.discrete import losses
from offline_mbrl.learners.discrete.configs import Config, is_image, name_of
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.networks import nature, optimizers, torsos
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Observation,
    Params,
    Policy,
    Transition,
    num_actions,
)

# --- networks ---


class Outputs(NamedTuple):
    """The outputs of a network for one observation."""

    heads: Array  # [H, A]
    logits: Array | None  # [A] of the clone; None: there is none


class QNetwork(nn.Module):
    """Heads of all actions, and the clone that BCQ's filter reads."""

    layers: tuple[int, ...]
    num_heads: int
    num_actions: int
    has_clone: bool
    padding: nature.Padding | None  # None: the observation is a vector
    dtype: Any = None  # of hidden layers; see `networks.precision`

    @nn.compact
    def __call__(self, observation: Observation) -> Outputs:
        """One observation to its outputs."""
        if self.padding is None:
            x = torsos.flat(observation)
        else:
            x = nature.Convolutions(self.padding, self.dtype, name="torso")(observation)
        mlp = functools.partial(torsos.MLP, dtype=self.dtype)
        heads = mlp((*self.layers, self.num_heads * self.num_actions), name="q")(x)
        logits = mlp((*self.layers, self.num_actions), name="clone")(x) if self.has_clone else None
        return Outputs(heads=heads.reshape(self.num_heads, self.num_actions), logits=logits)


def network(config: Config, spec: EnvironmentSpec, num_heads: int) -> QNetwork:
    """The network of these sizes.

    Args:
      config: settings.
      spec: of the problem.
      num_heads: H.

    Raises:
      UsageError: the actions are continuous.
    """
    return QNetwork(
        layers=(nature.DENSE,) if is_image(spec) else config.layers,
        num_heads=num_heads,
        num_actions=num_actions(spec, name_of(config)),
        has_clone=config.target_action == "filtered",
        padding=config.padding if is_image(spec) else None,
    )


# --- switches ---


def head_of(config: Config) -> losses.Head:
    """The heads that a config asks for."""
    if config.head == "scalar":
        return losses.scalar_head()
    if config.head == "quantile":
        return losses.quantile_head(config.num_heads)
    mixtures = {
        "none": losses.unmixed,
        "mean": losses.mean_mixture,
        "random_simplex": losses.random_mixture(config.num_heads),
    }
    return losses.ensemble_head(config.num_heads, mixtures[config.mix])


def selection_of(config: Config) -> losses.Selection:
    """The choice of next actions that a config asks for."""
    selections = {
        "max": losses.by_target,
        "double": losses.by_online,
        "filtered": losses.by_filtered_online(config.threshold),
    }
    return selections[config.target_action]


class Term(NamedTuple):
    """A loss beside the regression."""

    weight: float
    loss: Callable[[Outputs, Action], Array]  # of one transition, at its observation


def terms_of(config: Config) -> dict[str, Term]:
    """The added losses that a config asks for, by name."""

    def conservative(outputs: Outputs, action: Action) -> Array:
        return losses.conservative_gap(jnp.mean(outputs.heads, axis=0), action)

    def imitation(outputs: Outputs, action: Action) -> Array:
        assert outputs.logits is not None
        return losses.imitation_loss(outputs.logits, action, logit_penalty=config.logit_penalty)

    terms = {}
    if config.cql_alpha:
        terms["conservative"] = Term(weight=config.cql_alpha, loss=conservative)
    if config.target_action == "filtered":
        terms["imitation"] = Term(weight=config.imitation_weight, loss=imitation)
    return terms


# --- assembly ---


class State(NamedTuple):
    """What an update changes."""

    params: Params
    target_params: Params
    opt_state: optax.OptState
    num_updates: Array  # [] int32


# (params, target_params, batch [B, ...], key) -> (loss [], metrics)
Loss = Callable[[Params, Params, Transition, Key], tuple[Array, Metrics]]


def loss_of(
    module: QNetwork,
    head: losses.Head,
    selection: losses.Selection,
    terms: dict[str, Term],
    *,
    gamma: float,
) -> Loss:
    """The loss of a batch from its parts.

    Args:
      module: the network.
      head: what its heads are.
      selection: chooses next actions.
      terms: losses beside the regression.
      gamma: discount factor.
    """

    def per_transition(
        params: Params, target_params: Params, mixture: losses.Mixture, transition: Transition
    ) -> Metrics:
        outputs = torsos.apply(module, params, transition.observation)
        following = torsos.apply(module, params, transition.next_observation)
        target = mixture(torsos.apply(module, target_params, transition.next_observation).heads)
        action = selection(
            head.values(target), head.values(mixture(following.heads)), following.logits
        )
        regression = losses.td_loss(
            transition, mixture(outputs.heads), target, action, gamma=gamma, head=head
        )
        return {
            "regression": regression,
            "q": jnp.mean(outputs.heads[:, transition.action]),
            **{name: term.loss(outputs, transition.action) for name, term in terms.items()},
        }

    def loss(
        params: Params, target_params: Params, batch: Transition, key: Key
    ) -> tuple[Array, Metrics]:
        mixture = head.draw_mixture(key)
        rows = jax.vmap(per_transition, (None, None, None, 0))
        means = jax.tree.map(jnp.mean, rows(params, target_params, mixture, batch))
        total = means["regression"]
        for name, term in terms.items():
            total = total + term.weight * means[name]
        metrics = {f"loss/{name}": means[name] for name in ("regression", *terms)}
        return total, {"loss/total": total, **metrics, "q/mean": means["q"]}

    return loss


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are continuous, or a setting makes no learner.
    """
    settings.require_valid(config, name_of(config), spec)
    head = head_of(config)
    module = network(config, spec, head.num_heads)
    selection = selection_of(config)
    loss = loss_of(module, head, selection, terms_of(config), gamma=config.gamma)
    optimizer = optax.adam(config.learning_rate, eps=config.adam_epsilon)
    follow = actor_critic.polyak(config.tau, period=config.target_period)

    def init(key: Key, example: Transition, context: Context) -> State:
        del example, context  # sizes are those of the spec
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), spec.observation)
        params = torsos.init(module, key, zeros)
        return State(
            params=params,
            target_params=params,
            opt_state=optimizer.init(params),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def step(state: State, context: Context, batch: Transition, key: Key) -> tuple[State, Metrics]:
        del context
        gradient, metrics = jax.grad(loss, has_aux=True)(
            state.params, state.target_params, batch, key
        )
        params, opt_state = optimizers.descend(optimizer, gradient, state.opt_state, state.params)
        num_updates = state.num_updates + 1
        after = State(
            params=params,
            target_params=follow(params, state.target_params, num_updates),
            opt_state=opt_state,
            num_updates=num_updates,
        )
        return after, metrics

    def validate(state: State, context: Context, batch: Transition, key: Key) -> Metrics:
        del context
        return loss(state.params, state.target_params, batch, key)[1]

    def policy_params(state: State, context: Context) -> Params:
        del context
        return state.params

    return Learner(
        sample=memory.Transitions(config.batch_size, frame_stack=spec.frame_stack),
        init=init,
        step=step,
        validate=validate,
        policy=policy_of(module, selection, epsilon=config.epsilon),
        policy_params=policy_params,
    )


def policy_of(module: QNetwork, selection: losses.Selection, *, epsilon: float) -> Policy:
    """The policy that chooses by the mean of the heads as next actions are chosen.

    Args:
      module: the network.
      selection: chooses actions.
      epsilon: probability of a uniform action in `sample`, and in `log_prob`.
    """

    def mode(params: Params, observation: Observation) -> Action:
        outputs = torsos.apply(module, params, observation)
        values = jnp.mean(outputs.heads, axis=0, keepdims=True)
        return selection(values, values, outputs.logits)[0]

    def log_probs(params: Params, observation: Observation) -> Array:
        greedy = jax.nn.one_hot(mode(params, observation), module.num_actions)
        return losses.epsilon_greedy_log_probs(greedy, epsilon=epsilon)

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return jax.random.categorical(key, log_probs(params, observation))

    def log_prob(params: Params, observation: Observation, action: Action) -> Array:
        return log_probs(params, observation)[action]

    return Policy(sample=sample, mode=mode, log_prob=log_prob)
