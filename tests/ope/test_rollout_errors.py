"""Intervals of rollouts where members differ about as much as the noise of their rollouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.ope import rollout_errors

LOGS = 4_000
MEMBERS = 4
ROLLOUTS = 40  # all from one start
START = np.zeros(ROLLOUTS, int)
FACTOR = rollout_errors.member_factor(MEMBERS)


@jax.jit
@jax.vmap
def errors_of(returns):
    """(rollout_stderr, member_std) of one log's returns `[ROLLOUTS]`."""
    return (
        rollout_errors.rollout_stderr(returns, START),
        rollout_errors.member_std(returns, START, MEMBERS),
    )


def intervals_of(member_variance):
    """Errors, standard errors and whether noise exceeds the members' spread, `[LOGS]` each.

    The truth is 0 and one more draw of the law of the members' values; the noise of a member's mean
    return has variance 1.
    """
    generator = np.random.default_rng(0)
    effects = np.sqrt(member_variance) * generator.normal(size=(LOGS, MEMBERS + 1))
    values = effects[:, :MEMBERS] - effects[:, MEMBERS:]
    noise = np.sqrt(ROLLOUTS / MEMBERS) * generator.normal(size=(LOGS, ROLLOUTS))
    returns = values[:, np.arange(ROLLOUTS) % MEMBERS] + noise
    rollout_stderr, member_std = errors_of(jnp.asarray(returns, jnp.float32))
    by_member = returns.reshape(LOGS, -1, MEMBERS)
    noisy = by_member.mean(1).var(1, ddof=1) < by_member.var(1, ddof=1).mean(1) * MEMBERS / ROLLOUTS
    return returns.mean(1), np.hypot(rollout_stderr, FACTOR * member_std), noisy


@pytest.mark.parametrize("member_variance", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_either_side_of_an_interval_over_four_members_holds_the_truth(member_variance):
    error, stderr, _ = intervals_of(member_variance)
    for side in (-1.0, 1.0):
        held = np.mean(side * error < 1.96 * stderr)  # 0.975 of a known law, 0.92 were it cut at 0
        assert held > 0.955


def test_an_interval_whose_members_agree_by_chance_is_not_of_rollouts_alone():
    error, stderr, noisy = intervals_of(1.0)
    assert 0.1 < np.mean(noisy) < 0.5
    held = np.abs(error)[noisy] < 1.96 * stderr[noisy]
    assert np.mean(held) > 0.85  # 0.58 of rollout_stderr alone


def test_what_members_differ_by_beyond_doubt_loses_what_noise_explains():
    generator = np.random.default_rng(0)
    effects = np.array([-9.0, 0.0, 3.0, 12.0])
    noise = np.sqrt(ROLLOUTS / MEMBERS) * generator.normal(size=(LOGS, ROLLOUTS))
    _, member_std = errors_of(jnp.asarray(noise + effects[np.arange(ROLLOUTS) % MEMBERS]))
    error = 4 * np.std(member_std**2) / np.sqrt(LOGS)
    assert error < 0.9  # so that the noise's 1 would show
    assert abs(np.mean(member_std**2) - effects.var(ddof=1)) < error
