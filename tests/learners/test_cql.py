"""Conservative Q-learning: closed forms of its term, and what one update does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.learners import cql, sac
from offline_mbrl.learners.parts import actor_critic, candidates, conservative
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.types import BoundedActions, Context, EnvironmentSpec, Transition

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32),
    action=BoundedActions((-1.0,) * 2, (1.0,) * 2),
)
SIZES = {"actor_layers": (8,), "critic_layers": (8,), "batch_size": 6}
KEY = jax.random.key(3)
GAP = conservative.Config(coef=2.0, temperature=0.5, num_actions=2)


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


def config(**settings) -> cql.Config:
    return cql.Config(**{**SIZES, "gap": GAP, "inputs": InputConfig(), **settings})


@functools.cache
def started(**settings):
    """A method, its learner's first state, and its compiled step."""
    learner = cql.make(config(**settings), SPEC)
    state = learner.init(jax.random.key(0), None, Context())
    return cql.method(config(**settings), SPEC), state, jax.jit(learner.step)


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    return np.log(np.sum(np.exp(x), axis=-1))


# --- the term of one state ---


def test_the_soft_maximum_weighs_by_importance():
    q = jnp.array([1.0, 2.0, 3.0, 4.0])
    log_density = jnp.array([np.log(0.5), np.log(0.5), -1.0, -2.0])
    value = conservative.soft_maximum(q, log_density, temperature=1.0)
    np.testing.assert_allclose(value, 6.170116, rtol=1e-5)
    np.testing.assert_allclose(value - jnp.log(4.0), 4.783822, rtol=1e-5)


@pytest.mark.parametrize(("action", "expected"), [(0, 2.407606), (2, 0.407606)])
def test_over_all_actions_the_gap_is_the_log_sum_minus_the_datas_value(action, expected):
    q = jnp.array([1.0, 2.0, 3.0])
    gap = conservative.conservative_gap(q, jnp.zeros(3), q[action])
    np.testing.assert_allclose(gap, expected, rtol=1e-5)


def test_values_at_sampled_actions_are_pushed_down_and_densities_get_no_gradient():
    q = jnp.array([1.0, 2.0, 3.0])
    gap = jax.grad(conservative.conservative_gap, (0, 1, 2))
    down, density, up = gap(q, jnp.array([0.1, 0.2, 0.3]), q[0], temperature=0.7)
    np.testing.assert_allclose(jnp.sum(down), 1.0, rtol=1e-5)
    assert float(jnp.min(down)) > 0
    np.testing.assert_array_equal(density, 0.0)
    assert up == -1.0


def test_below_its_minimum_the_gap_is_constant():
    gap = functools.partial(conservative.conservative_gap, minimum=-200.0)
    value, slope = jax.value_and_grad(gap, 2)(jnp.zeros(2), jnp.zeros(2), jnp.float32(500.0))
    assert (value, slope) == (-200.0, 0.0)


def test_critics_descend_the_weighed_gap_and_the_multiplier_ascends_it():
    loss = functools.partial(conservative.weighed_gap, target_gap=5.0)
    value, slopes = jax.value_and_grad(loss, (0, 1))(jnp.float32(7.0), jnp.log(3.0))
    np.testing.assert_allclose([value, *slopes], [6.0, 3.0, -6.0], rtol=1e-5)
    np.testing.assert_allclose(loss(jnp.float32(7.0), jnp.log(1e7)), 2e6, rtol=1e-5)


# --- the term of a batch ---


def term(**rows):
    """The regularizer of a fresh agent, its metrics, and the actions that it draws."""
    method, state, _ = started()
    agent = actor_critic.agent_of(method.networks, state)

    @jax.jit
    def computed(data):
        drawn = conservative.proposals(agent, data, KEY, GAP.num_actions)
        return conservative.regularizer(GAP, **rows)(agent, Context(), data, KEY), drawn

    (value, metrics), (actions, log_density) = computed(batch())
    return value, metrics, agent, actions, log_density


def written_out(agent, actions, log_density):
    """Soft maxima `[N, B]` over all actions of a state, and the data's values `[N, B]`."""
    critics = jax.jit(agent.critics)
    q = [critics(batch().observation, actions[:, m]) for m in range(actions.shape[1])]
    weighed = (np.stack(q, axis=-1) - np.asarray(log_density)) / GAP.temperature
    return GAP.temperature * log_sum_exp(weighed), critics(batch().observation, batch().action)


def test_the_soft_maximum_runs_over_all_actions_of_a_state_and_one_critic():
    value, metrics, agent, actions, log_density = term()
    assert actions.shape == (6, 6, 2)
    largest, data_q = written_out(agent, actions, log_density)
    expected = np.mean(largest - data_q, axis=1)
    np.testing.assert_allclose(value, GAP.coef * np.sum(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["conservative/gap"], np.mean(expected), rtol=1e-5)


def test_proposals_have_the_density_of_what_they_were_drawn_from():
    """Uniform, then the policy here, then the policy at the next observation."""
    _, _, agent, actions, log_density = term()
    np.testing.assert_allclose(log_density[:, :2], 2 * np.log(0.5), rtol=1e-6)
    data = batch()
    log_prob = jax.jit(jax.vmap(lambda x, a: agent.policy(x).log_prob(a)))
    for group, observations in ((2, data.observation), (4, data.next_observation)):
        for k in (group, group + 1):
            density = log_prob(observations, actions[:, k])
            np.testing.assert_allclose(log_density[:, k], density, rtol=1e-3, atol=1e-3)


def test_only_the_rows_of_a_mask_count():
    first = jnp.arange(6) < 2
    value, _, agent, actions, log_density = term(
        state_rows=lambda batch: (~first).astype(jnp.float32),
        data_rows=lambda batch: first.astype(jnp.float32),
    )
    largest, data_q = written_out(agent, actions, log_density)
    expected = np.mean(largest[:, 2:], axis=1) - np.mean(data_q[:, :2], axis=1)
    np.testing.assert_allclose(value, GAP.coef * np.sum(expected), rtol=1e-5)


def test_the_term_has_a_gradient_by_the_critics_at_sampled_actions():
    """Rows without a data term still push the critics down."""
    method, state, _ = started()

    def loss(params):
        agent = actor_critic.agent_of(method.networks, state._replace(critic=params))
        rows = {"data_rows": lambda batch: jnp.zeros(6)}
        return conservative.regularizer(GAP, **rows)(agent, Context(), batch(), KEY)[0]

    gradient = jax.jit(jax.grad(loss))(state.critic)
    # Each of two critics falls by the whole weight where its last bias falls.
    np.testing.assert_allclose(gradient["layer_1"]["bias"], GAP.coef, rtol=1e-5)


# --- one update ---


def test_without_the_term_it_is_soft_actor_critic():
    settings = {"actor_learning_rate": 1e-3, "temperature_learning_rate": 1e-3}
    none = conservative.Config(coef=0.0, num_actions=2)
    _, state, step = started(backup="soft", gap=none, **settings)
    after, _ = step(state, Context(), batch(), jax.random.key(1))
    reference = sac.make(sac.Config(**SIZES, **settings), SPEC)
    expected, _ = jax.jit(reference.step)(state, Context(), batch(), jax.random.key(1))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), after.critic, expected.critic
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), after.actor, expected.actor
    )


@pytest.mark.parametrize(("target_gap", "sign"), [(-100.0, 1.0), (100.0, -1.0)])
def test_the_multiplier_grows_while_the_gap_is_above_its_target(target_gap, sign):
    learned = conservative.Config(num_actions=2, target_gap=target_gap)
    _, state, step = started(gap=learned)
    after, metrics = step(state, Context(), batch(), jax.random.key(1))
    moved = after.critic["log_multiplier"] - state.critic["log_multiplier"]
    assert sign * float(moved) > 0
    np.testing.assert_allclose(metrics["conservative/multiplier"], np.e, rtol=1e-5)
    weighed = np.e * (metrics["conservative/gap"] - target_gap)  # the mean of two critics
    np.testing.assert_allclose(metrics["loss/regularizer"], learned.coef * 2 * weighed, rtol=1e-4)


def test_the_backup_of_one_action_takes_the_least_critic_without_an_entropy():
    method, state, _ = started()
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    agent = actor_critic.agent_of(method.networks, state)
    data = batch()
    action = candidates.sample(agent.policy, data.next_observation, KEY, 1)[:, 0]
    q = jnp.min(agent.target_critics(data.next_observation, action), axis=0)
    targets = method.backup(agent, Context(), data, KEY)
    np.testing.assert_allclose(targets, data.reward + 0.99 * data.discount * q, rtol=1e-5)


def test_the_maximum_is_over_as_many_actions_as_a_group_has():
    method, state, _ = started(backup="maximum")
    agent = actor_critic.agent_of(method.networks, state)
    best_of_two = candidates.best_backup(0.99, GAP.num_actions)
    np.testing.assert_array_equal(
        method.backup(agent, Context(), batch(), KEY), best_of_two(agent, Context(), batch(), KEY)
    )


def test_the_best_backup_takes_the_best_of_the_least_critics():
    method, state, _ = started()
    table = jnp.array([[1.0, 8.0, 3.0], [2.0, 0.0, 7.0]])  # [N, K]

    def critics(observations, actions):
        """Values by the number that an action stands for."""
        return table[:, actions[:, 0].astype(jnp.int32)]

    agent = actor_critic.agent_of(method.networks, state)._replace(target_critics=critics)

    class Numbers:
        """Actions that are 0, 1 or 2 throughout."""

        def sample(self, *, seed):
            return jnp.full(2, jax.random.randint(seed, (), 0, 3), jnp.float32)

    agent = agent._replace(target_policy=lambda observation: Numbers())
    targets = candidates.best_backup(0.9, 200)(agent, Context(), batch(), jax.random.key(0))
    best = 3.0  # the least critics are 1, 0, 3
    expected = np.asarray(batch().reward) + 0.9 * best * np.asarray(batch().discount)
    np.testing.assert_allclose(targets, expected, rtol=1e-5)


def test_at_first_the_actor_clones_and_ignores_the_critics():
    _, state, step = started(cloning_updates=1)
    doubled = state._replace(critic=jax.tree.map(lambda leaf: 2.0 * leaf, state.critic))
    for updates, is_same in ((0, True), (1, False)):
        losses = [
            step(s._replace(num_updates=jnp.int32(updates)), Context(), batch(), jax.random.key(1))
            for s in (state, doubled)
        ]
        first, second = (float(metrics["loss/actor"]) for _, metrics in losses)
        assert (first == second) is is_same


def test_cloning_at_first_weighs_entropy_against_the_likelihood_of_the_data():
    method, state, _ = started(cloning_updates=1)
    agent = actor_critic.agent_of(method.networks, state)
    data = batch()
    _, log_prob = actor_critic.sample_actions(agent.policy, data.observation, KEY)
    likelihood = jax.vmap(lambda x, a: agent.policy(x).log_prob(a))(data.observation, data.action)
    loss = method.actor_objective(agent, Context(), data, KEY).loss
    np.testing.assert_allclose(loss, jnp.mean(log_prob - likelihood), rtol=1e-4)


def test_the_exported_policy_acts_by_the_mode():
    method, state, _ = started()
    learner = cql.make(config(), SPEC)
    observation = batch().observation[0]
    action = learner.policy.mode(learner.policy_params(state, Context()), observation)
    mean = method.networks.policy(state.actor, observation).mean
    np.testing.assert_allclose(action, jnp.tanh(mean), rtol=1e-6)
