"""Targets of value expansion where model, policy and critics have closed forms."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rollout_models as linear

from offline_mbrl.algorithms import cbop, expanded_targets
from offline_mbrl.algorithms.expanded_targets import Depths
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.problems import linear_quadratic as lq
from offline_mbrl.rollouts import adjust
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.targets import value_expansion
from offline_mbrl.types import Context, Prediction, Transition, UsageError

SPEC = lq.linear_quadratic(0, num_episodes=2).spec
KEY = jax.random.key(0)
GAIN = jnp.asarray(0.5 * lq.optimal_gain(), jnp.float32)
COST = jnp.asarray(lq.cost_of(np.asarray(GAIN)), jnp.float32)
OFFSETS = jnp.array([-1.0, 0.5, 2.0])  # of three critics from the true value
LOG_PROB = 0.7
TEMPERATURE = 0.2
ADJUST = adjust.identity


# --- a perfect model, a linear controller, and critics that are wrong by constants ---


class Controller(NamedTuple):
    """A distribution that is sure of one action."""

    action: jax.Array

    def sample(self, *, seed):
        return self.action

    def mode(self):
        return self.action

    def sample_and_log_prob(self, *, seed):
        return self.action, jnp.array(LOG_PROB)


def exact_step(params, state, action, key):
    del params, key
    following = jnp.asarray(lq.DYNAMICS, jnp.float32) @ state
    following = following + jnp.asarray(lq.DRIVE, jnp.float32) @ action
    reward = -jnp.sum(state**2) - jnp.sum(action**2)
    return following, Prediction(observation=following, reward=reward, discount=jnp.ones(()))


def true_value(state, action):
    following, prediction = exact_step(None, state, action, None)
    return prediction.reward - lq.GAMMA * following @ COST @ following


MODEL = linear.model()._replace(step=exact_step)
NETWORKS = actor_critic.Networks(
    init_actor=lambda key: {"gain": GAIN},
    policy=lambda params, state: Controller(jnp.clip(params["gain"] @ state, -1.0, 1.0)),
    init_critics=lambda key: OFFSETS,
    critics=lambda offsets, states, actions: (
        offsets[:, None] + jax.vmap(true_value)(states, actions)[None].astype(offsets.dtype)
    ),
)


def batch_of(size=6):
    generator = np.random.default_rng(1)
    states = jnp.asarray(generator.uniform(-0.6, 0.6, (size, 2)), jnp.float32)
    actions = jnp.asarray(generator.uniform(-0.5, 0.5, (size, 1)), jnp.float32)
    return Transition(
        observation=states,
        action=actions,
        reward=jnp.arange(size, dtype=jnp.float32),
        discount=jnp.ones(size).at[0].set(0.0),
        next_observation=states[::-1],
    )


BATCH = batch_of()


def initial_state():
    method = actor_critic.Method(
        networks=NETWORKS,
        backup=lambda *_: None,
        actor_objective=lambda *_: None,
        actor_optimizer=optax.identity(),
        critic_optimizer=optax.identity(),
        follow=actor_critic.polyak(0.1),
        temperature=actor_critic.Temperature(initial=TEMPERATURE),
    )
    return actor_critic.make(method, lambda *_: None).init(KEY, None, Context())


STATE = initial_state()


def agent():
    return actor_critic.agent_of(NETWORKS, STATE)


def depths(horizon=3, num_particles=2, *, adjust=ADJUST, dtype=jnp.float32):
    return Depths(
        horizon=horizon,
        num_particles=num_particles,
        gamma=lq.GAMMA,
        adjust=adjust,
        dtype=dtype,
    )


def members(count):
    return linear.params(count, size=2, actions=1)


def targets(depths, *, combine=value_expansion.gaussian, psi=0.0, params=None):
    backup = expanded_targets.backup(MODEL, NETWORKS, depths, combine=combine, psi=psi)
    context = Context(upstream={"model": members(2) if params is None else params})
    return jax.jit(lambda key: backup(agent(), context, BATCH, key))(KEY)


def next_value():
    actions = jax.vmap(lambda state: GAIN @ state)(BATCH.next_observation)
    return jax.vmap(true_value)(BATCH.next_observation, actions)


def regressed(value):
    soft = value - TEMPERATURE * LOG_PROB
    return BATCH.reward + lq.GAMMA * BATCH.discount * soft


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 5.0])
def test_without_depth_it_is_the_ensembles_lower_bound_whatever_model_and_particles(
    num_particles, noise
):
    adjusted = adjust.noise(noise) if noise else ADJUST
    psi = 3.0
    result = targets(depths(0, num_particles, adjust=adjusted), psi=psi)
    count = 3 * num_particles  # unbiased over the samples, copies of the critics' three
    deviation = jnp.std(OFFSETS) * jnp.sqrt(count / (count - 1))
    close(result.value, regressed(next_value() + jnp.mean(OFFSETS) - psi * deviation))


@pytest.mark.parametrize("horizon", range(5))
def test_in_a_perfect_model_mve_keeps_gamma_to_the_h_of_the_critics_error(horizon):
    last = value_expansion.fixed(value_expansion.last_weight(horizon))
    result = targets(depths(horizon), combine=last)
    close(result.value, regressed(next_value() + lq.GAMMA**horizon * jnp.mean(OFFSETS)))
    assert float(result.metrics["expansion/expected_horizon"]) == horizon


@pytest.mark.parametrize("psi", [cbop.PRESETS["steve"]["psi"], 2.0])
def test_in_a_perfect_model_the_posterior_is_the_closed_form(psi):
    """Without caution (psi 0) it is STEVE's mean, by precision."""
    result = targets(depths(3), psi=psi)
    factors = lq.GAMMA ** jnp.arange(4)
    deviation = jnp.std(OFFSETS) * jnp.sqrt(6 / 5) * factors
    precision = 1.0 / deviation**2
    weights = precision / jnp.sum(precision)
    error = jnp.mean(OFFSETS) * jnp.sum(weights * factors)
    std = 1.0 / jnp.sqrt(jnp.sum(precision))
    close(result.value, regressed(next_value() + error - psi * std))
    metrics = result.metrics
    close(metrics["expansion/expected_horizon"], jnp.sum(weights * jnp.arange(4)))
    close(metrics["expansion/std"], std)
    close([metrics[f"expansion/std_at_{h}"] for h in range(4)], deviation)
    close(metrics["expansion/mean"], jnp.mean(next_value()) + error)
    assert float(metrics["expansion/ended"]) == 0.0


def test_noise_in_the_model_shortens_the_expected_horizon():
    horizons = []
    for scale in (0.0, 0.1, 0.3, 1.0, 3.0):
        adjusted = adjust.noise(scale) if scale else ADJUST
        result = targets(depths(4, 8, adjust=adjusted), params=members(8))
        horizons.append(float(result.metrics["expansion/expected_horizon"]))
    assert horizons == sorted(horizons, reverse=True)
    assert horizons[0] > 2.0 > 0.1 > horizons[-1]


def ends_for(member):
    """Every first step of one member ends the episode."""

    def apply(params, observation, action, prediction, key):
        ends = params.network["members"]["bias"][0] == member
        return prediction._replace(discount=jnp.where(ends, 0.0, prediction.discount))

    return Adjust(apply=apply, changes_observation=False)


def test_one_particle_that_ends_leaves_depth_0_alone():
    params = members(2)
    named = {**params.network["members"], "bias": jnp.arange(2.0)}
    params = params._replace(network={"members": named, "shared": {}})
    result = targets(depths(2, adjust=ends_for(1)), psi=1.0, params=params)
    deviation = jnp.std(OFFSETS) * jnp.sqrt(6 / 5)
    close(result.value, regressed(next_value() + jnp.mean(OFFSETS) - deviation))
    assert float(result.metrics["expansion/ended"]) == 1.0
    assert float(result.metrics["expansion/expected_horizon"]) == 0.0


def test_a_true_terminal_of_the_data_is_its_reward_alone():
    assert float(targets(depths(1)).value[0]) == float(BATCH.reward[0])


def test_half_precision_changes_deeper_values_alone_and_little():
    exact = targets(depths(2)).metrics
    half = targets(depths(2, dtype=jnp.bfloat16)).metrics
    assert float(half["expansion/std_at_0"]) == float(exact["expansion/std_at_0"])
    assert float(half["expansion/mean"]) != float(exact["expansion/mean"])
    close_enough = functools.partial(np.testing.assert_allclose, rtol=0.03, atol=0.03)
    jax.tree.map(close_enough, half, exact)


def test_fewer_particles_than_elites_draw_members_anew():
    params = linear.params(5)._replace(elites=jnp.array([4, 0, 3, 1]))
    keys = jax.random.split(KEY, 200)
    drawn = jax.vmap(lambda key: expanded_targets.members_of_update(params, 2, key).elites)(keys)
    assert all(len(set(pair)) == 2 for pair in np.asarray(drawn).tolist())
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=5)
    assert counts[2] == 0
    assert np.all(counts[[0, 1, 3, 4]] > 60)  # a hundred expected
    assert expanded_targets.members_of_update(params, 4, KEY) is params


# --- the assembly ---

RETURNS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)), jnp.float32)


@pytest.mark.parametrize(
    ("options", "combine"),
    [
        ({}, value_expansion.gaussian),
        ({"weighting": "student_t"}, value_expansion.student_t),
        (
            {"prior_mean": 2.0, "prior_std": 0.5},
            functools.partial(value_expansion.gaussian, prior=value_expansion.Prior(2.0, 0.25)),
        ),
        (
            {"weighting": "geometric", "decay": 0.9},
            value_expansion.fixed(value_expansion.geometric_weights(2, 0.9)),
        ),
        ({"weighting": "uniform"}, value_expansion.fixed(value_expansion.uniform_weights(2))),
        (cbop.PRESETS["mve"], value_expansion.fixed(value_expansion.last_weight(2))),
        (cbop.PRESETS["steve"], value_expansion.gaussian),
    ],
)
def test_settings_choose_the_weighting(options, combine):
    chosen = cbop.weighting(cbop.Config(**{**options, "horizon": 2}))
    mask = jnp.array([1.0, 1.0, 0.0])
    jax.tree.map(close, chosen(RETURNS, mask), combine(RETURNS, mask))


@pytest.mark.parametrize(("name", "reduce"), [("min", jnp.min), ("mean", jnp.mean)])
def test_the_actor_climbs_the_least_or_the_mean_critic(name, reduce):
    objective = cbop.actor_objective(cbop.Config(actor_value=name))
    loss = objective(agent(), Context(), BATCH, KEY).loss
    actions = jax.vmap(lambda state: GAIN @ state)(BATCH.observation)
    value = jnp.mean(jax.vmap(true_value)(BATCH.observation, actions)) + reduce(OFFSETS)
    close(loss, TEMPERATURE * LOG_PROB - value)


def test_settings_of_the_paper():
    config = cbop.Config()
    assert (config.horizon, config.num_particles, config.psi, config.eta) == (10, 20, 3.0, 1.0)
    assert (config.policy.num_critics, config.policy.batch_size) == (20, 256)
    assert (config.dynamics.num_members, config.dynamics.fit.num_elites) == (30, 20)
    assert cbop.PRESETS["hopper"]["policy"].num_critics == 50


def test_an_unknown_rule_of_termination_is_refused():
    with pytest.raises(UsageError, match="gym/Hoper"):
        cbop.make(cbop.Config(termination="gym/Hoper-v4"), SPEC)


def test_a_prior_is_read_by_the_gaussian_weighting_alone():
    with pytest.raises(UsageError, match="prior_std"):
        cbop.make(cbop.Config(weighting="last", prior_std=1.0), SPEC)
