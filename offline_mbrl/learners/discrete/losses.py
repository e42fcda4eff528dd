"""Equations of offline Q-learning with discrete actions, one transition.

A network gives `[H, A]`: H heads for each of A actions, which are one value, quantiles, or members
of an ensemble. A head's kind is a record of functions, `Head`; which next action is backed up is a
function, `Selection`.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from offline_mbrl.types import Action, Array, Key, Transition

Mixture = Callable[[Array], Array]  # heads [H, A] -> learned values [M, A]
# (target values [C, A], online values [C, A], logits of the clone [A] or None) -> actions [C]
Selection = Callable[[Array, Array, Array | None], Action]


class Head(NamedTuple):
    """What the H outputs of an action mean, and how they are learned."""

    num_heads: int  # H
    # One mixture serves a whole batch, and both sides of the regression.
    draw_mixture: Callable[[Key], Mixture]
    values: Callable[[Array], Array]  # learned values [M, A] -> [C, A] that next actions maximize
    regression: Callable[[Array, Array], Array]  # (predictions [M], targets [M]) -> []


# --- regressions ---


def huber_regression(predictions: Array, targets: Array) -> Array:
    """The mean over M learned values of their Huber losses of threshold 1, `[]`.

    Args:
      predictions: `[M]`.
      targets: `[M]`.

    Source: Mnih et al., Nature 2015; arXiv:1907.04543, section 4.2, for ensembles.
    """
    chex.assert_equal_shape([predictions, targets])
    return jnp.mean(optax.huber_loss(predictions, targets))


def quantile_regression(quantiles: Array, targets: Array) -> Array:
    """`sum_i mean_j |tau_i - 1[u_ij < 0]| Huber(u_ij)` with `u_ij = target_j - theta_i`, `[]`.

    `tau_i = (i - 1/2) / N`; the threshold of the Huber loss is 1.

    Args:
      quantiles: `[N]` theta, of the data's action.
      targets: `[N]`, samples of the target distribution.

    Source: arXiv:1710.10044, equations 9 and 10.
    """
    chex.assert_rank([quantiles, targets], 1)
    num_quantiles = quantiles.shape[0]
    levels = (jnp.arange(num_quantiles) + 0.5) / num_quantiles
    errors = targets[None, :] - quantiles[:, None]  # [i, j]
    weights = jnp.abs(levels[:, None] - (errors < 0.0))
    return jnp.sum(jnp.mean(weights * optax.huber_loss(errors), axis=1))


# --- mixtures of heads ---


def unmixed(key: Key) -> Mixture:
    """Heads that learn apart: M = H."""
    del key  # deterministic
    return lambda heads: heads


def mean_mixture(key: Key) -> Mixture:
    """Heads whose mean learns: M = 1."""
    del key  # deterministic
    return lambda heads: jnp.mean(heads, axis=0, keepdims=True)


def weighted_mixture(weights: Array) -> Mixture:
    """Heads whose weighted sum learns, weights `[H]`: M = 1."""
    return lambda heads: jnp.sum(weights[:, None] * heads, axis=0, keepdims=True)


def random_mixture(num_heads: int) -> Callable[[Key], Mixture]:
    """REM's: a sum weighted by uniform numbers divided by their total.

    This is the released code's draw, which is closer to the plain mean than a uniform point of the
    simplex. Source: arXiv:1907.04543, section 4.2.
    """

    def draw(key: Key) -> Mixture:
        numbers = jax.random.uniform(key, (num_heads,))
        return weighted_mixture(numbers / jnp.sum(numbers))

    return draw


# --- kinds of heads ---


def scalar_head() -> Head:
    """One value for each action."""
    return ensemble_head(1, unmixed)


def ensemble_head(num_heads: int, draw_mixture: Callable[[Key], Mixture]) -> Head:
    """Values of members, or of their mixtures, each with a next action of its own."""
    return Head(
        num_heads=num_heads,
        draw_mixture=draw_mixture,
        values=lambda learned: learned,
        regression=huber_regression,
    )


def quantile_head(num_quantiles: int) -> Head:
    """Quantiles of the return, which share the next action of the best mean."""
    return Head(
        num_heads=num_quantiles,
        draw_mixture=unmixed,
        values=lambda learned: jnp.mean(learned, axis=0, keepdims=True),
        regression=quantile_regression,
    )


# --- next actions ---


def by_target(target: Array, online: Array, logits: Array | None) -> Action:
    """`argmax` of the target network's values `[C, A]`, `[C]`."""
    del online, logits
    return jnp.argmax(target, axis=-1)


def by_online(target: Array, online: Array, logits: Array | None) -> Action:
    """`argmax` of the online network's values `[C, A]`, `[C]` (double DQN, arXiv:1509.06461)."""
    del target, logits
    return jnp.argmax(online, axis=-1)


def by_filtered_online(threshold: float) -> Selection:
    """`argmax` of the online network's values over the actions that the clone allows."""

    def select(target: Array, online: Array, logits: Array | None) -> Action:
        del target
        assert logits is not None
        return jnp.argmax(filtered(online, logits, threshold=threshold), axis=-1)

    return select


def filtered(values: Array, logits: Array, *, threshold: float) -> Array:
    """The values `[..., A]`, and -inf for actions that the clone finds unlikely.

    An action is allowed where `G(a|s) / max G > threshold`, and where it is the clone's best, so
    that no threshold leaves none.

    Args:
      values: `[..., A]`.
      logits: `[A]` of the clone G.
      threshold: from 0, which allows all, to 1.

    Source: arXiv:1910.01708, equation 2.
    """
    log_ratio = logits - jnp.max(logits)
    allowed = (log_ratio > jnp.log(threshold)) | (log_ratio == 0.0)
    return jnp.where(allowed, values, -jnp.inf)


# --- losses ---


def td_loss(
    transition: Transition,
    heads: Array,
    next_target: Array,
    next_action: Action,
    *,
    gamma: float,
    head: Head,
) -> Array:
    """The regression of the data's action to `r + gamma discount Q'(s', a')`, `[]`.

    Args:
      transition: of the data.
      heads: `[M, A]` learned values at its observation, mixed.
      next_target: `[M, A]` the target network's at the next one, mixed in the same way.
      next_action: `[C]`, with C = M or, where all share it, C = 1.
      gamma: discount factor.
      head: their meaning.
    """
    chex.assert_rank([transition.reward, transition.action, heads, next_action], [0, 0, 2, 1])
    chex.assert_equal_shape([heads, next_target])
    rows = jnp.arange(heads.shape[0])
    following = next_target[rows, jnp.broadcast_to(next_action, rows.shape)]
    targets = transition.reward + gamma * transition.discount * following
    return head.regression(heads[:, transition.action], jax.lax.stop_gradient(targets))


def conservative_gap(values: Array, action: Action) -> Array:
    """`logsumexp_a Q(s, a) - Q(s, a_data)`, `[]`, of `[A]` values (arXiv:2006.04779, equation 4).

    Args:
      values: `[A]`; means, where there are several heads.
      action: `[]` of the data.
    """
    chex.assert_rank([values, action], [1, 0])
    return jax.nn.logsumexp(values) - values[action]


def imitation_loss(logits: Array, action: Action, *, logit_penalty: float) -> Array:
    """`-log G(a|s) + logit_penalty mean(logits^2)`, `[]`.

    Args:
      logits: `[A]` of the clone.
      action: `[]` of the data.
      logit_penalty: weight that keeps logits small.

    Source: the released code of arXiv:1910.01708.
    """
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, action)
    return cross_entropy + logit_penalty * jnp.mean(jnp.square(logits))


# --- acting ---


def epsilon_greedy_log_probs(values: Array, *, epsilon: float) -> Array:
    """Log probabilities `[A]` of the epsilon-greedy policy of `[A]` values.

    Args:
      values: `[A]`.
      epsilon: probability of a uniform action.
    """
    chex.assert_rank(values, 1)
    num_actions = values.shape[0]
    uniform = jnp.full(num_actions, epsilon / num_actions)
    return jnp.log(uniform.at[jnp.argmax(values)].add(1.0 - epsilon))
