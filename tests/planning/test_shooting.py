"""Planners by shooting: against the Riccati equation, what they may spend, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadratic_model as quadratic
from planning_examples import KEY

from offline_mbrl.planning import cross_entropy, improve, path_integral, shooting
from offline_mbrl.problems import linear_quadratic
from offline_mbrl.rollouts import adjust, shares
from offline_mbrl.types import UsageError

GAIN = linear_quadratic.optimal_gain()
BAD = 0.1  # actions above it, in models that fail there


def mppi(task, **settings):
    """Around the plan, close to it: far and cold, a few chance sequences would decide."""
    propose = path_integral.around_plan(task, std=0.1)
    weigh = improve.exponential(0.02)
    return path_integral.mppi(task, propose, weigh, **{"num_candidates": 300, **settings})


def follow(task, **settings):
    propose = path_integral.along_policy(task, noise=0.2, mixing=0.5)
    weigh = improve.exponential(0.01)
    return path_integral.mppi(task, propose, weigh, **{"num_candidates": 300, **settings})


def cem(task, **settings):
    return cross_entropy.cem(task, **{"num_candidates": 150, **settings})


def icem(task, **settings):
    return cross_entropy.icem(task, **settings)


PLANNERS = {"mppi": mppi, "follow": follow, "cem": cem, "icem": icem}
every_planner = pytest.mark.parametrize("make", PLANNERS.values(), ids=PLANNERS)


def first_action(actor, params, *, key=KEY, greedily=True, state=quadratic.START):
    act = actor.act_greedily if greedily else actor.act
    return jax.jit(act)(params, actor.init(params, state, key), state, key)


def controlled_return(actor, params, steps=40):
    """The discounted return of an episode in the true system, and what is left at its end."""

    def step(carry, t):
        state, plan, factor = carry
        action, plan = actor.act_greedily(params, plan, state, jax.random.fold_in(KEY, t))
        following, reward = quadratic.outcome(state, jnp.clip(action, -1.0, 1.0))
        return (following, plan, factor * linear_quadratic.GAMMA), factor * reward

    @jax.jit
    def play():
        start = (quadratic.START, actor.init(params, quadratic.START, KEY), 1.0)
        (state, _, factor), rewards = jax.lax.scan(step, start, jnp.arange(steps))
        return jnp.sum(rewards) + factor * quadratic.optimal_tail({}, state, None, KEY)

    return float(play())


OPTIMAL = float(quadratic.optimal_tail({}, quadratic.START, None, KEY))


@every_planner
def test_with_a_perfect_model_a_planner_is_within_a_percent_of_riccati(make):
    """The policy that it proposes does nothing, and the first plan is inaction."""
    task = quadratic.task()
    inaction = controlled_return(make(task, budget=0), quadratic.params())
    assert inaction < 1.2 * OPTIMAL
    planned = controlled_return(make(task), quadratic.params())
    np.testing.assert_allclose(planned, OPTIMAL, rtol=0.01)


def finite_horizon_controls(horizon):
    """The optimal actions from the start when nothing counts after `horizon` steps."""
    gamma, a, b = linear_quadratic.GAMMA, linear_quadratic.DYNAMICS, linear_quadratic.DRIVE
    cost = np.zeros((2, 2))
    gains = []
    for _ in range(horizon):
        gain = -np.linalg.solve(1 + gamma * b.T @ cost @ b, gamma * b.T @ cost @ a)
        closed = a + b @ gain
        cost = np.eye(2) + gain.T @ gain + gamma * closed.T @ cost @ closed
        gains.append(gain)
    state = np.asarray(quadratic.START)
    actions = []
    for gain in reversed(gains):
        actions.append(gain @ state)
        state = a @ state + b @ actions[-1]
    return np.array(actions)


def test_with_a_horizon_to_the_end_the_plan_is_the_optimal_controller():
    task = quadratic.task(horizon=6, tail=shooting.no_tail)
    actor = cem(task, num_candidates=300, num_iterations=12, min_variance=0.0)
    action, carry = first_action(actor, quadratic.params())
    plan = np.concatenate([action[None], carry[:-1]])
    np.testing.assert_allclose(plan, finite_horizon_controls(6), atol=0.01)


# --- budgets and keys ---


@every_planner
@pytest.mark.parametrize("budget", [0, 4])  # of a candidate's five steps
def test_without_a_budget_the_proposal_policy_acts_bit_for_bit(make, budget):
    policy = quadratic.normal_policy()
    params = quadratic.params() | {"policy": {"mean": jnp.array([0.3]), "std": jnp.array(0.2)}}
    actor = make(quadratic.task(policy=policy), budget=budget)
    sampled, _ = first_action(actor, params, greedily=False)
    expected = jax.jit(policy.sample)(params["policy"], quadratic.START, KEY)
    np.testing.assert_array_equal(sampled, expected)
    np.testing.assert_array_equal(first_action(actor, params)[0], params["policy"]["mean"])


def counting(rows):
    """Spreads rollouts jointly, and notes their number."""

    def apply(model, run):
        rollouts = shares.jointly.apply(model, run)

        def counted(model_params, policy_params, observation, key, first_action=None):
            rows.append(key.shape[0])
            return rollouts(model_params, policy_params, observation, key, first_action)

        return counted

    return shares.jointly._replace(apply=apply)


@every_planner
@pytest.mark.parametrize("budget", [1_000, 3_000])
def test_no_planner_takes_more_model_steps_than_its_budget(make, budget):
    rows = []
    task = quadratic.task(num_particles=2, spread=counting(rows))
    settings = {"num_iterations": 1} if make is cem else {}  # a scan is traced once
    actor = make(task, num_candidates=1_000, budget=budget, **settings)
    jax.eval_shape(lambda: first_action(actor, quadratic.params()))
    steps = sum(rows) * task.horizon
    assert budget - 60 < steps <= budget


def test_iterations_share_the_budget():
    rows = []
    task = quadratic.task(spread=counting(rows))
    actor = cem(task, budget=1_000, num_iterations=4)
    jax.eval_shape(lambda: first_action(actor, quadratic.params()))
    assert set(rows) == {1_000 // (4 * task.horizon)}


@every_planner
def test_the_key_decides_the_action(make):
    actor = make(quadratic.task())
    params = quadratic.params()
    first, again = (first_action(actor, params)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first_action(actor, params, key=jax.random.key(1))[0] != first)


@every_planner
def test_a_planner_acts_alike_whatever_its_neighbors(make):
    actor = make(quadratic.task())
    params = quadratic.params()
    states = jnp.array([quadratic.START, -quadratic.START, 0.5 * quadratic.START])
    keys = jax.random.split(KEY, 3)

    def act(state, key):
        return actor.act(params, actor.init(params, state, key), state, key)[0]

    together = jax.jit(jax.vmap(act))(states, keys)
    alone = [jax.jit(act)(state, key) for state, key in zip(states, keys, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


# --- values ---


def candidates(task, params, plans):
    plans = jnp.asarray(plans)[:, :, None]

    @jax.jit
    def evaluate():
        return shooting.evaluate(task, shooting.plan_actor, params, plans, quadratic.START, KEY)

    return evaluate()


def test_a_value_is_the_discounted_return_and_the_tail():
    gamma = linear_quadratic.GAMMA
    state = quadratic.START
    total = 0.0
    for t, action in enumerate((0.4, -0.2)):
        state, reward = quadratic.outcome(state, jnp.array([action]))
        total += gamma**t * reward
    total += gamma**2 * quadratic.optimal_tail({}, state, None, KEY)
    values = candidates(quadratic.task(horizon=2), quadratic.params(), [(0.4, -0.2)]).values
    np.testing.assert_allclose(values, [total], rtol=1e-5)


def test_particles_of_a_candidate_take_turns_with_the_members():
    task = quadratic.task(horizon=1, gamma=1.0, tail=shooting.no_tail)
    reward = quadratic.outcome(quadratic.START, jnp.zeros(1))[1]
    params = quadratic.params(bonus=(1.0, 5.0))
    plans = [(0.0,)] * 3
    single = candidates(task, params, plans).values
    np.testing.assert_allclose(single, reward + jnp.array([1.0, 5.0, 1.0]), rtol=1e-5)
    both = candidates(task._replace(num_particles=2), params, plans).values
    np.testing.assert_allclose(both, jnp.full(3, reward + 3.0), rtol=1e-5)


def test_nothing_counts_after_a_terminal_not_even_a_bad_tail():
    always = adjust.terminate(lambda observation, action, following: jnp.array(True))
    for tail in (1e6, jnp.nan):
        task = quadratic.task(adjust=always, tail=lambda *_, value=tail: jnp.asarray(value))
        values = candidates(task, quadratic.params(), [(0.4, 0.1, 0.1, 0.1, 0.1)]).values
        reward = quadratic.outcome(quadratic.START, jnp.array([0.4]))[1]
        np.testing.assert_allclose(values, [reward], rtol=1e-5)


def failing(state, action, reward):
    """NaN above `BAD`; elsewhere negative and better the closer to it, so that NaN tempts."""
    del state, reward
    return jnp.where(action[0] > BAD, jnp.nan, action[0] - 10.0)


@every_planner
def test_no_sequence_that_diverged_decides(make):
    task = quadratic.task(model=quadratic.model(failing), horizon=1, tail=shooting.no_tail)
    action, carry = first_action(make(task), quadratic.params())
    assert -0.5 < float(action[0]) <= BAD + 0.01
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(carry))


@every_planner
def test_where_all_sequences_diverge_the_proposal_policy_acts(make):
    broken = quadratic.model(lambda state, action, reward: jnp.nan)
    params = quadratic.params(gain=GAIN)
    action, carry = first_action(make(quadratic.task(model=broken)), params)
    np.testing.assert_allclose(action, GAIN @ quadratic.START, rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(carry))


# --- along a policy ---


def test_without_noise_the_candidates_of_a_deterministic_policy_are_its_own_actions():
    task = quadratic.task()
    weigh = improve.exponential(1.0)
    actor = path_integral.mppi(task, path_integral.along_policy(task), weigh, num_candidates=3)
    action, carry = first_action(actor, quadratic.params(gain=GAIN))
    np.testing.assert_allclose(action, GAIN @ quadratic.START, rtol=1e-5)
    following = quadratic.outcome(quadratic.START, action)[0]
    np.testing.assert_allclose(carry[0], GAIN @ following, rtol=1e-4)


def test_at_horizon_zero_the_tail_improves_a_normal_policy_by_its_closed_form():
    """The limit N(mu + sigma^2 g / eta, sigma^2), for the mean and for what is drawn."""
    mu, sigma, g, eta = 0.2, 0.5, 2.0, 0.8
    task = quadratic.task(
        horizon=0,
        policy=quadratic.normal_policy(),
        tail=lambda params, observation, action, key: params["tail"]["slope"] * action[0],
        bounds=None,
    )
    params = quadratic.params(tail={"slope": g})
    params["policy"] = {"mean": jnp.array([mu]), "std": jnp.array(sigma)}
    actor = path_integral.mppi(
        task, path_integral.along_policy(task), improve.exponential(eta), num_candidates=20_000
    )
    expected = mu + sigma**2 * g / eta
    np.testing.assert_allclose(first_action(actor, params)[0], [expected], atol=0.05)
    small = path_integral.mppi(
        task, path_integral.along_policy(task), improve.exponential(eta), num_candidates=400
    )
    keys = jax.random.split(KEY, 500)

    @jax.jit
    def draws():
        carry = small.init(params, quadratic.START, KEY)
        return jax.vmap(lambda key: small.act(params, carry, quadratic.START, key)[0])(keys)

    np.testing.assert_allclose(jnp.mean(draws()), expected, atol=0.1)
    np.testing.assert_allclose(jnp.std(draws()), sigma, atol=0.05)


@pytest.mark.parametrize(
    ("shift", "position"), [(shooting.shifted, 1), (shooting.unshifted, 0)], ids=["shift", "none"]
)
def test_the_plan_is_shifted_or_mixed_in_as_it_is(shift, position):
    """All of the plan mixed in: the next action is its second or, as in MBOP's code, its first."""
    task = quadratic.task()
    propose = path_integral.along_policy(task, mixing=1.0)
    actor = path_integral.mppi(
        task, propose, improve.exponential(1.0), num_candidates=2, shift=shift
    )
    params = quadratic.params()
    plan = jnp.linspace(0.1, 0.5, 5)[:, None]
    act = jax.jit(actor.act_greedily)
    action, carry = act(params, plan, quadratic.START, KEY)
    np.testing.assert_allclose(action, plan[0], rtol=1e-6)
    following, _ = act(params, carry, quadratic.START, KEY)
    np.testing.assert_allclose(following, plan[position], rtol=1e-6)


def test_smoothing_averages_along_time():
    expected = [1.0, 0.5, 0.25 + 1.0]
    smoothed = path_integral._smoothed(jnp.array([[1.0], [0.0], [2.0]]), 0.5)
    np.testing.assert_allclose(smoothed[:, 0], expected, rtol=1e-6)


def test_settings_that_make_no_planner_are_refused():
    task = quadratic.task()
    with pytest.raises(UsageError, match="num_candidates is 0"):
        cem(task, num_candidates=0)
    with pytest.raises(UsageError, match="budget -1"):
        mppi(task, budget=-1)
    with pytest.raises(UsageError, match="num_iterations is 0"):
        icem(task, num_iterations=0)
    with pytest.raises(UsageError, match="bounds"):
        cem(task._replace(bounds=None))
