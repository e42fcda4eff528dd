"""Critic regularized regression: closed forms of its equations, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.learners import crr
from offline_mbrl.learners.parts import actor_critic, critic_kinds
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition, UsageError

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6, "num_components": 2}
SUPPORT = {"num_atoms": 5, "value_range": (-2.0, 2.0)}
SQUARED = {"critic": "squared", "num_critics": 2}
NORMAL = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6, "policy": "normal"}


def batch(seed: int = 0, size: int = 6) -> Transition:
    generator = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(generator.uniform(-1, 1, (size, *shape)), jnp.float32)

    return Transition(
        observation=draw(3),
        action=draw(2),
        reward=draw(),
        discount=jnp.ones(size).at[0].set(0.0),
        next_observation=draw(3),
    )


@functools.cache
def started(**settings):
    """A method, its learner's first state, and its compiled step."""
    config = crr.Config(**{**SIZES, **settings})
    learner = crr.make(config, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    return crr.method(config, SPEC), state, jax.jit(learner.step)


def log_prob(method, state, data: Transition) -> jax.Array:
    policy = functools.partial(method.networks.policy, state.actor)
    return jax.vmap(lambda x, a: policy(x).log_prob(a))(data.observation, data.action)


# --- equations ---


def test_the_advantage_compares_least_critics_with_the_mean_or_the_best_action():
    q = jnp.array([5.0, 3.0])
    sampled = jnp.array([[1.0, 8.0, 3.0], [2.0, 0.0, 7.0]])  # least: 1, 0, 3
    np.testing.assert_allclose(crr.advantage(q, sampled, jnp.mean), 3.0 - 4.0 / 3.0, rtol=1e-6)
    assert crr.advantage(q, sampled, jnp.max) == 0.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [np.exp(-1.0), 1.0, np.e, 20.0]),
        ({"temperature": 2.0}, [np.exp(-0.5), 1.0, np.exp(0.5), 20.0]),
        ({"weight": "binary"}, [0.0, 0.0, 1.0, 1.0]),
    ],
)
def test_weights_of_advantages(settings, expected):
    weigh = crr.weight(crr.Config(**settings))
    np.testing.assert_allclose(weigh(jnp.array([-1.0, 0.0, 1.0, 30.0])), expected, rtol=1e-5)


def test_the_backup_of_a_distribution_moves_its_atoms_onto_the_support():
    step = jax.tree.map(lambda leaf: leaf[1], batch())._replace(reward=jnp.float32(0.5))
    logits = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))  # the first has least mean
    support = jnp.arange(3.0)
    target = critic_kinds.categorical_target(step, logits, support, gamma=0.5)
    np.testing.assert_allclose(target, [0.1, 0.75, 0.15], rtol=1e-5)
    np.testing.assert_allclose(
        critic_kinds.categorical_loss(jnp.array([[0.0, 1.0, 0.0]] * 2), target),
        2 * 0.801445,
        rtol=1e-5,
    )
    ended = step._replace(discount=jnp.float32(0.0))
    np.testing.assert_allclose(
        critic_kinds.categorical_target(ended, logits, support, gamma=0.5), [0.5, 0.5, 0.0], 1e-5
    )


# --- one update ---


@pytest.mark.parametrize(
    "settings", [SQUARED, {"gamma": 0.5, "num_atoms": 5, "value_range": (-5.0, 5.0)}]
)
def test_rewards_stay_with_their_transitions(settings):
    """A reward that met all values of the batch would give every target the same mean reward."""
    method, state, _ = started(**settings)
    agent = actor_critic.agent_of(method.networks, state)
    data = batch()
    permuted = data._replace(reward=data.reward[::-1])
    backup = jax.jit(lambda data: method.backup(agent, Context(), data, jax.random.key(1)))
    targets = [np.asarray(backup(data)) for data in (data, permuted)]
    means = [x if x.ndim == 1 else x @ np.linspace(-5.0, 5.0, 5) for x in targets]
    assert means[0].shape == (6,)
    difference = np.asarray(permuted.reward - data.reward)
    np.testing.assert_allclose(means[1] - means[0], difference, atol=1e-5)


@pytest.mark.parametrize("settings", [SQUARED, SUPPORT])
def test_targets_read_the_lagging_networks_alone(settings):
    method, state, _ = started(**settings)

    @jax.jit
    def backup(state):
        agent = actor_critic.agent_of(method.networks, state)
        return method.backup(agent, Context(), batch(), jax.random.key(1))

    doubled = {
        name: jax.tree.map(lambda leaf: 2.0 * leaf, getattr(state, name))
        for name in ("actor", "critic")
    }
    targets = backup(state)
    np.testing.assert_array_equal(backup(state._replace(**doubled)), targets)
    for name, params in doubled.items():
        assert np.any(backup(state._replace(**{f"target_{name}": params})) != targets)


def test_the_actor_clones_by_weights_without_a_gradient_through_them():
    method, state, _ = started(**SQUARED, num_actions=3)
    data = batch()
    agent = actor_critic.agent_of(method.networks, state)
    key = jax.random.key(1)

    def loss(params):
        changed = actor_critic.agent_of(method.networks, state._replace(actor=params))
        objective = crr.weighted_cloning(jnp.exp, jnp.mean, 3)
        return objective(changed, Context(), data, key).loss

    actions = crr.candidates.sample(agent.policy, data.observation, key, 3)
    q = np.min(agent.critics(data.observation, data.action), axis=0)
    sampled = [np.min(agent.critics(data.observation, actions[:, k]), axis=0) for k in range(3)]
    weights = np.exp(q - np.mean(sampled, axis=0))

    def expected(params):
        return -jnp.mean(weights * log_prob(method, state._replace(actor=params), data))

    got, reference = (jax.jit(jax.value_and_grad(f))(state.actor) for f in (loss, expected))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), got, reference
    )


def test_a_hot_temperature_clones_all_actions_alike():
    method, state, step = started(**SQUARED, temperature=1e6)
    _, metrics = step(state, Context(), batch(), jax.random.key(1))
    expected = -jnp.mean(log_prob(method, state, batch()))
    np.testing.assert_allclose(metrics["loss/actor"], expected, rtol=1e-4)


def test_both_targets_are_copied_at_once_every_period():
    _, state, step = started(**SUPPORT, target_period=2)
    start = state
    states = [state]
    for seed in range(2):
        state, _ = step(state, Context(), batch(seed), jax.random.key(seed))
        states.append(state)
    for target, online in (("target_actor", "actor"), ("target_critic", "critic")):
        kept, copied = (getattr(after, target) for after in states[1:])
        jax.tree.map(np.testing.assert_array_equal, kept, getattr(start, target))
        jax.tree.map(np.testing.assert_array_equal, copied, getattr(states[2], online))


def test_a_policy_without_a_lagging_copy_chooses_the_next_action_itself():
    method, state, _ = started(**{**SQUARED, "lagging_policy": False})
    assert state.target_actor is None
    assert method.follow_actor is None


def test_a_value_is_the_mean_of_its_distribution_and_stays_on_the_support():
    method, state, _ = started(**SUPPORT)
    huge = jax.tree.map(lambda leaf: 1e3 * leaf, state.critic)
    q = method.networks.critics(huge, batch().observation, batch().action)
    assert q.shape == (1, 6)
    assert float(jnp.max(jnp.abs(q))) <= 2.0 + 1e-5


def test_settings_of_another_critic_are_refused():
    with pytest.raises(UsageError, match="num_atoms"):
        crr.make(crr.Config(**{**SIZES, **SQUARED, "num_atoms": 21}), SPEC)


@pytest.mark.parametrize("kind", ["mixture", "normal"])
def test_the_exported_policy_acts_by_the_mode_and_has_no_density(kind):
    settings = SIZES if kind == "mixture" else NORMAL
    config = crr.Config(**settings)
    learner = crr.make(config, SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    observation = batch().observation[0]
    distribution = crr.actor(config, SPEC).apply(state.actor, observation)
    mean = distribution.mean
    if kind == "mixture":
        mean = mean[jnp.argmax(distribution.logits)]
    action = learner.policy.mode(learner.policy_params(state, Context()), observation)
    np.testing.assert_allclose(action, jnp.clip(mean, -1.0, 1.0), rtol=1e-6)
    assert learner.policy.log_prob is None
