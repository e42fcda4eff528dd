"""Stages before an actor-critic learner: its actor clones the data, its critics evaluate them.

Critics regress to `r + gamma discount mean_m Q_m(s', a')` with the logged next action, fitted Q
evaluation of the behavior. CBOP's code leaves terminals out, so that its critics start without a
zero there; here they count with target r. Left out are only the last steps of truncated episodes,
which no action follows. Its rounds with frozen targets are a lagging target here, its early
stopping a number of updates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax

from offline_mbrl.data import memory
from offline_mbrl.learners import bc
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method, Networks
from offline_mbrl.settings import Scope, above, at_least, between, read_if
from offline_mbrl.types import (
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    PyTree,
    Stage,
    Transition,
)


def _is_used(scope: Scope) -> bool:
    return scope.config.cloning_updates + scope.config.evaluation_updates > 0


if_used = read_if(_is_used, "cloning_updates or evaluation_updates")


@dataclass(frozen=True)
class WarmStart:
    """CBOP's rates; by default there is no such stage."""

    cloning_updates: Annotated[int, at_least(0)] = 0
    evaluation_updates: Annotated[int, at_least(0)] = 0
    batch_size: Annotated[int, at_least(1), if_used] = 1_024
    learning_rate: Annotated[float, above(0), if_used] = 1e-3  # Adam
    tau: Annotated[float, between(0, 1), if_used] = 0.005  # of the new critic in the target


def stages(
    config: WarmStart, networks: Networks, spec: EnvironmentSpec, *, gamma: float
) -> dict[str, Stage]:
    """Those of "behavior" and "critic" that have updates.

    Args:
      config: their lengths and rates.
      networks: of the learner that starts from them.
      spec: of the problem.
      gamma: discount factor.
    """
    cloning = Stage(
        learner=_cloning(config, networks, spec), num_updates=max(config.cloning_updates, 1)
    )
    evaluation = Stage(
        learner=_evaluation(config, networks, gamma),
        num_updates=max(config.evaluation_updates, 1),
        outputs=_critic,
    )
    used = {
        "behavior": (config.cloning_updates, cloning),
        "critic": (config.evaluation_updates, evaluation),
    }
    return {name: stage for name, (num_updates, stage) in used.items() if num_updates}


def started(learner: Learner, config: WarmStart) -> Learner:
    """The learner with the parameters that the stages hand on.

    Args:
      learner: of `actor_critic.make`.
      config: that of `stages`.
    """

    def init(key: Key, example: Transition, context: Context) -> actor_critic.State:
        state = learner.init(key, example, context)
        return state._replace(**_handed_on(config, context.upstream))

    return learner._replace(init=init)


def _handed_on(config: WarmStart, upstream: Mapping[str, PyTree]) -> dict[str, Params]:
    params = {}
    if config.cloning_updates:
        params["actor"] = upstream["behavior"]
    if config.evaluation_updates:
        params["critic"] = upstream["critic"]
        params["target_critic"] = upstream["critic"]
    return params


# --- the actor ---


def _cloning(config: WarmStart, networks: Networks, spec: EnvironmentSpec) -> Learner:
    """Maximum likelihood of the data's actions."""

    def init(key: Key, observation: Observation) -> Params:
        del observation  # sizes are those of the networks
        return networks.init_actor(key)

    def loss(params: Params, transition: Transition) -> Array:
        return -networks.policy(params, transition.observation).log_prob(transition.action)

    density = bc.Density(
        init=init,
        distribution=networks.policy,
        loss=loss,
        optimizer=optax.adam(config.learning_rate),
    )
    return bc.learner(density, spec, config.batch_size)


# --- the critics ---


class Evaluation(NamedTuple):
    """What critics regress to."""

    target: Array  # [B]
    weight: Array  # [B]   0 where no action follows a step that did not terminate


def behavior_target(transition: Transition, next_q: Array, *, gamma: float) -> Evaluation:
    """`r + gamma discount mean_m Q_m(s', a')` of one transition, fields `[]`.

    Args:
      transition: with `has_next_action` in `extras`.
      next_q: `[M]` at the logged next action.
      gamma: discount factor.
    """
    follows = transition.extras["has_next_action"]
    return Evaluation(
        target=transition.reward + gamma * transition.discount * jnp.mean(next_q),
        weight=1.0 - transition.discount * (1.0 - follows),
    )


def weighted_regression(agent: Agent, batch: Transition, evaluation: Evaluation) -> Array:
    """The weighted mean of the critics' squared errors, `[]`."""
    q = agent.critics(batch.observation, batch.action)
    losses = jax.vmap(actor_critic.critic_loss, (1, 0))(q, evaluation.target)
    return jnp.sum(evaluation.weight * losses) / jnp.maximum(jnp.sum(evaluation.weight), 1.0)


def _evaluation(config: WarmStart, networks: Networks, gamma: float) -> Learner:
    """Fitted Q evaluation of the behavior; the actor stays as it is."""

    def backup(agent: Agent, context: Context, batch: Transition, key: Key) -> Evaluation:
        del context, key  # deterministic
        next_q = agent.target_critics(batch.next_observation, batch.extras["next_action"])

        def per_transition(transition: Transition, q: Array) -> Evaluation:
            return behavior_target(transition, q, gamma=gamma)

        return jax.vmap(per_transition, (0, 1))(batch, next_q)

    method = Method(
        networks=networks,
        backup=backup,
        actor_objective=_rest,
        actor_optimizer=optax.set_to_zero(),
        critic_optimizer=optax.adam(config.learning_rate),
        follow=actor_critic.polyak(config.tau),
        regression=weighted_regression,
    )
    sample = memory.Transitions(config.batch_size, with_next_action=True)
    return actor_critic.make(method, sample)._replace(policy=None)


def _rest(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
    del agent, context, batch, key
    return ActorLoss(loss=jnp.zeros(()))


def _critic(state: actor_critic.State, context: Context) -> Params:
    del context
    return state.critic
