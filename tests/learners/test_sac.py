"""Soft actor-critic: closed forms of its equations, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import sac
from offline_mbrl.training import fit
from offline_mbrl.types import BoundedActions, EnvironmentSpec, Transition, UsageError

SPEC = EnvironmentSpec(
    {"place": jax.ShapeDtypeStruct((2,), jnp.float32), "speed": jax.ShapeDtypeStruct((1,), jnp.float32)},
    BoundedActions((-1.0,) * 2, (1.0,) * 2))  # fmt: skip
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6}
STEP = Transition((), jnp.zeros(2), jnp.float32(2.0), jnp.float32(1.0), ())


def batch(size: int = 6, *, discount: float = 1.0) -> Transition:
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)  # noqa: E731
    seen = lambda: {"place": draw(2), "speed": draw(1)}  # noqa: E731
    return Transition(seen(), draw(2), draw(), jnp.full(size, discount), seen())


@functools.cache
def started(**settings):
    """A learner's state and its compiled step."""
    learner = sac.make(sac.Config(**SIZES, **settings), SPEC)
    return learner.init(jax.random.key(0), None, (), ()), jax.jit(learner.step)


# --- equations ---


def test_the_target_is_the_reward_at_a_terminal():
    ended = STEP._replace(discount=jnp.float32(0.0))
    assert sac.target(ended, jnp.array([5.0, 7.0]), jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.5)) == 2.0


def test_the_target_of_one_critic_without_entropy_is_the_bellman_target():
    found = sac.target(STEP, jnp.array([5.0]), jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.0))
    np.testing.assert_allclose(found, 2.0 + 0.9 * 5.0, rtol=1e-6)


def test_the_target_takes_the_least_critic_and_pays_for_entropy():
    found = sac.target(STEP, jnp.array([7.0, 5.0, 6.0]), jnp.float32(-3.0), gamma=0.9, temperature=jnp.float32(0.5))
    np.testing.assert_allclose(found, 2.0 + 0.9 * (5.0 + 0.5 * 3.0), rtol=1e-6)


def test_each_critic_has_its_own_squared_error():
    loss = lambda q: sac.critic_loss(q, jnp.float32(1.0))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.array([3.0, 0.0]))
    np.testing.assert_allclose(value, 0.5 * (4.0 + 1.0))
    np.testing.assert_allclose(gradient, [2.0, -1.0])


def test_the_actor_climbs_the_least_critic_and_its_entropy():
    found = sac.actor_loss(jnp.array([3.0, 1.0]), jnp.float32(-2.0), temperature=jnp.float32(0.1))
    np.testing.assert_allclose(found, 0.1 * -2.0 - 1.0, rtol=1e-6)


@pytest.mark.parametrize(("entropy", "sign"), [(1.5, 1.0), (2.5, -1.0)])
def test_the_temperature_falls_while_there_is_more_entropy_than_wanted(entropy, sign):
    loss = functools.partial(sac.temperature_loss, log_prob=jnp.float32(-entropy), target_entropy=2.0)
    assert np.sign(jax.grad(loss)(jnp.float32(0.3))) == -sign


# --- one update ---


def test_rewards_stay_with_their_transitions():
    """A reward that met all values of the batch would leave the loss as it is when rewards are permuted."""
    state, step = started()
    ended = batch(discount=0.0)
    permuted = ended._replace(reward=ended.reward[::-1])
    critics = sac.networks(sac.Config(**SIZES), SPEC).critics
    q = np.asarray(critics.apply(state.critic, ended.observation, ended.action))
    losses = []
    for one in (ended, permuted):
        losses.append(float(step(state, one, jax.random.key(1))[1]["loss/critic"]))
        expected = np.mean(0.5 * np.sum((q - np.asarray(one.reward)) ** 2, axis=0))
        np.testing.assert_allclose(losses[-1], expected, rtol=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_without_entropy_the_critics_regress_to_the_target_critics_at_a_fresh_action():
    """With the least deviation the fresh action is nearly the mode, so that the target can be written out."""
    settings = {"fixed_temperature": 0.0, "log_std_bounds": (-12.0, -11.0), "num_critics": 1, "gamma": 0.9}
    state, step = started(**settings)
    nets, one = sac.networks(sac.Config(**SIZES, **settings), SPEC), batch()
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    mode = jax.vmap(lambda seen: nets.policy(state.actor, seen).mode())(one.next_observation)
    wanted = one.reward + 0.9 * nets.critics.apply(state.target_critic, one.next_observation, mode)[0]
    q = nets.critics.apply(state.critic, one.observation, one.action)[0]
    found = step(state, one, jax.random.key(1))[1]["loss/critic"]
    np.testing.assert_allclose(found, jnp.mean(0.5 * (q - wanted) ** 2), rtol=1e-4)


def test_the_target_critics_follow_by_tau():
    state, step = started(tau=0.25)
    after, _ = step(state, batch(), jax.random.key(1))
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.target_critic, after.critic)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), after.target_critic, expected)


def test_the_temperature_is_learned_unless_it_is_fixed():
    for settings, change in (
        ({"target_entropy": -10.0}, -1), ({"target_entropy": 10.0}, 1), ({"fixed_temperature": 0.2}, 0),
    ):  # fmt: skip
        state, step = started(**settings)
        after, metrics = step(state, batch(), jax.random.key(1))
        assert np.sign(after.log_temperature - state.log_temperature) == change
        np.testing.assert_allclose(metrics["temperature"], settings.get("fixed_temperature", 1.0), rtol=1e-6)


def test_the_deviation_stays_within_its_bounds():
    state, _ = started()
    policy = sac.networks(sac.Config(**SIZES), SPEC).policy
    seen = jax.tree.map(lambda leaf: leaf[0], batch().observation)
    for bias, bound in ((-100.0, -5.0), (100.0, 2.0)):
        last = {**state.actor["layer_1"], "bias": jnp.full(4, bias)}
        np.testing.assert_array_equal(policy({**state.actor, "layer_1": last}, seen).log_std, jnp.full(2, bound))


def test_critics_start_different_and_each_target_at_its_critic():
    state, _ = started(num_critics=3)
    kernel = np.asarray(state.critic["layer_0"]["kernel"])
    assert kernel.shape == (3, 5, 8)
    assert len({member.tobytes() for member in kernel}) == 3
    jax.tree.map(np.testing.assert_array_equal, state.critic, state.target_critic)


# --- learning ---


def test_a_reward_of_one_that_never_ends_is_worth_its_geometric_sum_even_where_episodes_are_cut():
    size, generator = 200, np.random.default_rng(0)
    data = Dataset.from_arrays({
        "observation": generator.uniform(-1, 1, (size, 2)).astype(np.float32), "reward": np.ones(size),
        "action": generator.uniform(-1, 1, (size, 1)).astype(np.float32), "is_terminal": np.zeros(size, bool),
        "is_truncated": np.arange(size) % 4 == 3})  # fmt: skip
    spec = EnvironmentSpec(jax.ShapeDtypeStruct((2,), jnp.float32), BoundedActions((-1.0,), (1.0,)))
    config = sac.Config(
        actor_layers=(8,), critic_layers=(8,), batch_size=32, gamma=0.8, tau=0.1, fixed_temperature=0.0,
        critic_learning_rate=1e-2)  # fmt: skip
    learner = sac.make(config, spec)
    state = fit.fit(learner, data, key=jax.random.key(0), num_updates=1_000, block_updates=1_000).state.learner
    q = sac.networks(config, spec).critics.apply(state.critic, jnp.zeros((1, 2)), jnp.zeros((1, 1)))
    np.testing.assert_allclose(q, 5.0, atol=0.2)


# --- bad input ---


@pytest.mark.parametrize("settings", [
    {"num_critics": 0}, {"log_std_bounds": (2.0, -5.0)}, {"initial_temperature": 0.0}, {"fixed_temperature": -1.0},
    {"fixed_temperature": float("nan")},
])  # fmt: skip
def test_settings_that_make_no_learner_are_refused(settings):
    with pytest.raises(UsageError, match="sac: "):
        sac.make(sac.Config(**settings), SPEC)
