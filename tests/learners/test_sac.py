"""Soft actor-critic: closed forms of its equations, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import sac
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition, UsageError

SPEC = EnvironmentSpec(
    observation={
        "position": jax.ShapeDtypeStruct((2,), jnp.float32),
        "speed": jax.ShapeDtypeStruct((1,), jnp.float32),
    },
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6}
STEP = Transition(
    observation=(),
    action=jnp.zeros(2),
    reward=jnp.float32(2.0),
    discount=jnp.float32(1.0),
    next_observation=(),
)


def batch(size: int = 6, *, discount: float = 1.0) -> Transition:
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)

    def observations() -> dict[str, jax.Array]:
        return {"position": draw(2), "speed": draw(1)}

    return Transition(
        observation=observations(),
        action=draw(2),
        reward=draw(),
        discount=jnp.full(size, discount),
        next_observation=observations(),
    )


@functools.cache
def started(**settings):
    """A learner's first state and its compiled step, `(state, batch, key) -> (state, metrics)`."""
    learner = sac.make(sac.Config(**SIZES, **settings), SPEC)

    def step(state, batch, key):
        return learner.step(state, Context(), batch, key)

    return learner.init(jax.random.key(0), None, Context()), jax.jit(step)


# --- equations ---


def test_the_target_is_the_reward_at_a_terminal():
    ended = STEP._replace(discount=jnp.float32(0.0))
    target = sac.target(
        ended, jnp.array([5.0, 7.0]), jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.5)
    )
    assert target == 2.0


def test_the_target_of_one_critic_without_entropy_is_the_bellman_target():
    target = sac.target(
        STEP, jnp.array([5.0]), jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.0)
    )
    np.testing.assert_allclose(target, 2.0 + 0.9 * 5.0, rtol=1e-6)


def test_the_target_takes_the_least_critic_and_pays_for_entropy():
    next_q = jnp.array([7.0, 5.0, 6.0])
    target = sac.target(STEP, next_q, jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.5))
    np.testing.assert_allclose(target, 2.0 + 0.9 * (5.0 + 0.5 * 3.0), rtol=1e-6)


def test_the_actor_climbs_the_least_critic_and_its_entropy():
    q = jnp.array([3.0, 1.0])
    loss = sac.actor_loss(q, jnp.float32(-2.0), temperature=jnp.float32(0.1))
    np.testing.assert_allclose(loss, 0.1 * -2.0 - 1.0, rtol=1e-6)


# --- one update ---


def test_rewards_stay_with_their_transitions():
    """A reward that met all values of the batch would make the loss blind to permutations."""
    state, step = started()
    ended = batch(discount=0.0)
    permuted = ended._replace(reward=ended.reward[::-1])
    critics = sac.networks(sac.Config(**SIZES), SPEC).critics
    q = np.asarray(critics(state.critic, ended.observation, ended.action))
    losses = []
    for data in (ended, permuted):
        losses.append(float(step(state, data, jax.random.key(1))[1]["loss/critic"]))
        expected = np.mean(0.5 * np.sum((q - np.asarray(data.reward)) ** 2, axis=0))
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_without_entropy_the_critics_regress_to_the_target_critics_at_a_fresh_action():
    """With the least deviation the fresh action is nearly the mode: the target is written out."""
    settings = {
        "fixed_temperature": 0.0,
        "log_std_bounds": (-12.0, -11.0),
        "num_critics": 1,
        "gamma": 0.9,
    }
    state, step = started(**settings)
    nets = sac.networks(sac.Config(**SIZES, **settings), SPEC)
    data = batch()
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    mode = jax.vmap(lambda x: nets.policy(state.actor, x).mode())(data.next_observation)
    next_q = nets.critics(state.target_critic, data.next_observation, mode)[0]
    q = nets.critics(state.critic, data.observation, data.action)[0]
    loss = step(state, data, jax.random.key(1))[1]["loss/critic"]
    expected = jnp.mean(0.5 * (q - data.reward - 0.9 * next_q) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_the_target_critics_follow_by_tau():
    state, step = started(tau=0.25)
    after, _ = step(state, batch(), jax.random.key(1))
    expected = jax.tree.map(
        lambda old, new: 0.75 * old + 0.25 * new, state.target_critic, after.critic
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        after.target_critic,
        expected,
    )


def test_the_temperature_is_learned_unless_it_is_fixed():
    for settings, change in (
        ({"target_entropy": -10.0}, -1),
        ({"target_entropy": 10.0}, 1),
        ({"fixed_temperature": 0.2}, 0),
    ):
        state, step = started(**settings)
        after, metrics = step(state, batch(), jax.random.key(1))
        assert np.sign(after.log_temperature - state.log_temperature) == change
        expected = settings.get("fixed_temperature", 1.0)
        np.testing.assert_allclose(metrics["temperature"], expected, rtol=1e-6)


def test_the_target_entropy_is_minus_the_size_of_an_action():
    wide = SPEC.__class__(SPEC.observation, BoundedActions((-1.0,) * 6, (1.0,) * 6))
    assert sac.temperature(sac.Config(), wide).target_entropy == -6.0


def test_the_deviation_stays_within_its_bounds():
    state, _ = started()
    policy = sac.networks(sac.Config(**SIZES), SPEC).policy
    observation = jax.tree.map(lambda leaf: leaf[0], batch().observation)
    for bias, bound in ((-100.0, -5.0), (100.0, 2.0)):
        last = {**state.actor["layer_1"], "bias": jnp.full(4, bias)}
        log_std = policy({**state.actor, "layer_1": last}, observation).log_std
        np.testing.assert_array_equal(log_std, jnp.full(2, bound))


def test_the_exported_policy_acts_by_the_mode():
    learner = sac.make(sac.Config(**SIZES), SPEC)
    state, _ = started()
    observation = {"position": jnp.array([0.3, -0.2]), "speed": jnp.array([0.9])}
    params = learner.policy_params(state, Context())
    mean = sac.networks(sac.Config(**SIZES), SPEC).policy(state.actor, observation).mean
    np.testing.assert_allclose(learner.policy.mode(params, observation), jnp.tanh(mean), rtol=1e-6)


def test_critics_start_different_and_each_target_at_its_critic():
    state, _ = started(num_critics=3)
    kernel = np.asarray(state.critic["layer_0"]["kernel"])
    assert kernel.shape == (3, 5, 8)
    assert len({member.tobytes() for member in kernel}) == 3
    jax.tree.map(np.testing.assert_array_equal, state.critic, state.target_critic)


# --- learning ---


def test_a_reward_of_one_that_never_ends_is_worth_its_geometric_sum_even_where_episodes_are_cut():
    size = 200
    generator = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {
            "observation": generator.uniform(-1, 1, (size, 2)).astype(np.float32),
            "action": generator.uniform(-1, 1, (size, 1)).astype(np.float32),
            "reward": np.ones(size),
            "is_terminal": np.zeros(size, bool),
            "is_truncated": np.arange(size) % 4 == 3,
        }
    )
    spec = EnvironmentSpec(
        observation=jax.ShapeDtypeStruct((2,), jnp.float32),
        action=BoundedActions((-1.0,), (1.0,)),
    )
    config = sac.Config(
        actor_layers=(8,),
        critic_layers=(8,),
        batch_size=32,
        gamma=0.8,
        tau=0.1,
        fixed_temperature=0.0,
        critic_learning_rate=1e-2,
    )
    learner = sac.make(config, spec)
    result = fit.fit(learner, data, key=jax.random.key(0), num_updates=1_000, block_updates=1_000)
    critic = result.state.learner.critic
    q = sac.networks(config, spec).critics(critic, jnp.zeros((1, 2)), jnp.zeros((1, 1)))
    np.testing.assert_allclose(q, 5.0, atol=0.2)


# --- bad input ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_critics": 0}, "num_critics must be at least 1, got 0"),
        ({"log_std_bounds": (2.0, -5.0)}, "log_std_bounds must be increasing"),
        ({"initial_temperature": 0.0}, "initial_temperature must be above 0"),
        ({"fixed_temperature": -1.0}, "fixed_temperature must be at least 0"),
        ({"fixed_temperature": float("nan")}, "fixed_temperature must be a finite number"),
        ({"fixed_temperature": 0.1, "target_entropy": 1.0}, "only with a learned temperature"),
    ],
)
def test_settings_that_make_no_learner_are_refused(settings, message):
    with pytest.raises(UsageError, match=f"sac: .*{message}"):
        sac.make(sac.Config(**settings), SPEC)


# --- options of OfflineRL-Kit ---


def test_a_temperature_stays_at_its_maximum():
    optimizer = optax.chain(optax.sgd(1.0), sac.at_most(np.log(0.5)))
    log_temperature = jnp.log(0.4)
    reached = []
    for gradient in (-0.1, -5.0, 0.3):
        updates, _ = optimizer.update(gradient, optimizer.init(log_temperature), log_temperature)
        log_temperature = optax.apply_updates(log_temperature, updates)
        reached.append(float(jnp.exp(log_temperature)))
    np.testing.assert_allclose(reached, [0.4 * np.exp(0.1), 0.5, 0.5 * np.exp(-0.3)], rtol=1e-5)
    temperature = sac.temperature(sac.Config(max_temperature=0.5), SPEC)
    assert temperature.optimizer is not None
    start = jnp.log(0.5)
    updates, _ = temperature.optimizer.update(-1.0, temperature.optimizer.init(start), start)
    np.testing.assert_allclose(updates, 0, atol=1e-6)


def test_the_actors_rate_falls_as_a_cosine_to_the_end_of_the_run():
    config = sac.Config(actor_schedule="cosine", actor_learning_rate=0.1, num_updates=4)
    optimizer = sac.actor_optimizer(config)
    params = jnp.zeros(())
    state = optimizer.init(params)
    steps = []
    for _ in range(5):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        steps.append(-float(updates))
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(steps, expected, rtol=1e-4, atol=1e-7)
