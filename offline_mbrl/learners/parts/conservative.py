"""The conservative term of CQL(H) (arXiv:2006.04779), for any method of `actor_critic`.

Critics descend a soft maximum of their values over sampled actions minus their value at the data's
action. The weight of the term is fixed, or learned until the two differ by a target gap. Of a batch
only some rows may count, as with imagined states in COMBO (arXiv:2102.08363).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import chex
import jax
import jax.numpy as jnp

from offline_mbrl.learners.parts import actor_critic, candidates
from offline_mbrl.learners.parts.actor_critic import Agent, Networks
from offline_mbrl.settings import above, at_least
from offline_mbrl.types import Action, Array, Context, Key, Metrics, Observation, Params, Transition

LARGEST_MULTIPLIER = 1e6
INITIAL_LOG_MULTIPLIER = 1.0  # released code


@dataclass(frozen=True)
class Config:
    """The conservative term: the paper's locomotion, in the widely used reimplementation (CORL)."""

    coef: Annotated[float, at_least(0)] = 5.0  # of the term beside half the squared error
    temperature: Annotated[float, above(0)] = 1.0  # of the soft maximum
    num_actions: Annotated[int, at_least(1)] = 10  # of each of the three groups
    minimum: float | None = None  # of the soft maximum minus the data's value, each state
    # The multiplier of `coef` is learned until the difference, which contains the logarithm of the
    # number of actions and of their volume, equals this; None: it is 1.
    target_gap: float | None = None


# --- the equations, one state ---


def soft_maximum(q: Array, log_density: Array, *, temperature: float) -> Array:
    """`temperature log sum_m exp((Q(s, a_m) - log density_m) / temperature)`, `[]`.

    Args:
      q: `[M]` one critic at all sampled actions of one state.
      log_density: `[M]` of those actions, each under what it was drawn from; without gradient.
      temperature: of the maximum.

    Source: arXiv:2006.04779, appendix F, without the constant `log M`.
    """
    chex.assert_rank([q, log_density], 1)
    chex.assert_equal_shape([q, log_density])
    weighed = (q - jax.lax.stop_gradient(log_density)) / temperature
    return temperature * jax.nn.logsumexp(weighed)


def conservative_gap(
    sampled_q: Array,
    log_density: Array,
    data_q: Array,
    *,
    temperature: float = 1.0,
    minimum: float | None = None,
    state_weight: Array | float = 1.0,
    data_weight: Array | float = 1.0,
) -> Array:
    """`state_weight soft_maximum - data_weight Q(s, a)`, `[]`: one critic at one state.

    Args:
      sampled_q: `[M]` the critic at sampled actions.
      log_density: `[M]` of those actions.
      data_q: `[]` the critic at the row's own action.
      temperature: of the soft maximum.
      minimum: the difference is clipped from below; None: it is not.
      state_weight: `[]` 0 where the state does not count.
      data_weight: `[]` 0 where the row's own action does not count.

    Source: arXiv:2006.04779, equation 4; with weights, COMBO's (arXiv:2102.08363).
    """
    chex.assert_rank(data_q, 0)
    largest = soft_maximum(sampled_q, log_density, temperature=temperature)
    gap = state_weight * largest - data_weight * data_q
    return gap if minimum is None else jnp.maximum(gap, minimum)


def ascending(x: Array) -> Array:
    """`x`, with the gradient reversed: what descends a loss through it ascends."""
    return 2.0 * jax.lax.stop_gradient(x) - x


def weighed_gap(gap: Array, log_multiplier: Array, *, target_gap: float) -> Array:
    """`multiplier (gap - target_gap)`, which critics descend and the multiplier ascends; `[]`.

    Args:
      gap: `[]` the mean of `conservative_gap`.
      log_multiplier: `[]` logarithm of the dual variable.
      target_gap: the multiplier grows while the gap is above it.

    Source: arXiv:2006.04779, CQL with a Lagrange multiplier (appendix F).
    """
    multiplier = ascending(jnp.clip(jnp.exp(log_multiplier), 0.0, LARGEST_MULTIPLIER))
    return multiplier * (gap - target_gap)


# --- the regularizer ---

Rows = Callable[[Transition], Array]  # batch -> [B], 0 where a row does not count


def all_rows(batch: Transition) -> Array:
    """Every row counts: ones `[B]`."""
    return jnp.ones_like(batch.reward)


def proposals(agent: Agent, batch: Transition, key: Key, num_actions: int) -> tuple[Action, Array]:
    """Uniform actions, the policy's, and the policy's at the next observation.

    Args:
      agent: whose policy it is.
      batch: `[B]` transitions.
      key: consumed.
      num_actions: K of each of the three groups.

    Returns:
      Actions `[B, 3 K, A]` and their log densities `[B, 3 K]`.
    """
    key_uniform, key_here, key_next = jax.random.split(key, 3)
    size, num_entries = batch.action.shape
    shape = (size, num_actions, num_entries)
    uniform = jax.random.uniform(key_uniform, shape, minval=-1.0, maxval=1.0)
    uniform_density = jnp.full(shape[:2], num_entries * jnp.log(0.5))
    draw = candidates.sample_with_density
    here, here_density = draw(agent.policy, batch.observation, key_here, num_actions)
    after, after_density = draw(agent.policy, batch.next_observation, key_next, num_actions)
    actions = jnp.concatenate([uniform, here, after], axis=1)
    return actions, jnp.concatenate([uniform_density, here_density, after_density], axis=1)


def regularizer(
    config: Config, *, state_rows: Rows = all_rows, data_rows: Rows = all_rows
) -> actor_critic.CriticRegularizer:
    """The sum over critics of the weighed mean of `conservative_gap`.

    With a target gap it reads the critics' parameter `log_multiplier` (`with_multiplier`).

    Args:
      config: its settings.
      state_rows: the rows whose observations the soft maximum is averaged over.
      data_rows: the rows whose own values are averaged.
    """

    def term(agent: Agent, context: Context, batch: Transition, key: Key) -> tuple[Array, Metrics]:
        del context
        actions, log_density = proposals(agent, batch, key, config.num_actions)
        sampled_q = candidates.evaluate(agent.critics, batch.observation, actions)  # [N, B, 3 K]
        data_q = agent.critics(batch.observation, batch.action)  # [N, B]

        def per_state(q: Array, log_density: Array, data_q: Array, *weights: Array) -> Array:
            state_weight, data_weight = weights
            return conservative_gap(
                q,
                log_density,
                data_q,
                temperature=config.temperature,
                minimum=config.minimum,
                state_weight=state_weight,
                data_weight=data_weight,
            )

        weights = _share(state_rows(batch)), _share(data_rows(batch))
        over_states = jax.vmap(per_state)
        over_critics = jax.vmap(over_states, (0, None, 0, None, None))
        gap = jnp.mean(over_critics(sampled_q, log_density, data_q, *weights), axis=1)  # [N]
        metrics = {"conservative/gap": jnp.mean(gap)}
        if config.target_gap is None:
            return config.coef * jnp.sum(gap), metrics
        log_multiplier = agent.state.critic["log_multiplier"]
        metrics["conservative/multiplier"] = jnp.exp(log_multiplier)
        weighed = weighed_gap(gap, log_multiplier, target_gap=config.target_gap)
        return config.coef * jnp.sum(weighed), metrics

    return term


def _share(rows: Array) -> Array:
    """Weights `[B]` whose mean with values is the mean over the rows that count."""
    return rows / jnp.maximum(jnp.mean(rows), 1.0 / rows.shape[0])


def with_multiplier(networks: Networks) -> Networks:
    """The networks with a dual variable in the parameters: `{"q": ..., "log_multiplier": []}`."""

    def init_critics(key: Key) -> Params:
        return {
            "q": networks.init_critics(key),
            "log_multiplier": jnp.float32(INITIAL_LOG_MULTIPLIER),
        }

    def critics(params: Params, observations: Observation, actions: Action) -> Array:
        return networks.critics(params["q"], observations, actions)

    return networks._replace(init_critics=init_critics, critics=critics)
