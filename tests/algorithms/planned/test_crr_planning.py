"""CRR with planning: it learns as CRR does, and acts by the formula of its planner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import export
from offline_mbrl.algorithms.planned import crr_planning
from offline_mbrl.data import normalize
from offline_mbrl.learners import crr
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.models import autoregressive, feedforward, fitting
from offline_mbrl.problems import linear_quadratic
from offline_mbrl.training import fit
from offline_mbrl.types import Actor, Context, UsageError

FIT = fitting.Config(num_updates=2, batch_size=8, refresh_every=2)
MODELS = {
    "feedforward": feedforward.FeedforwardConfig(hidden_layers=(8,), num_members=2, fit=FIT),
    "autoregressive": autoregressive.MaskedConfig(
        hidden_size=8, num_blocks=1, num_members=2, fit=FIT
    ),
}
POLICY = crr.Config(
    batch_size=8, actor_layers=(8,), critic_layers=(8,), num_atoms=5, value_range=(-4.0, 0.0)
)
KEY = jax.random.key(0)
STATE = jnp.array([0.5, -0.2])
PROBLEM = linear_quadratic.linear_quadratic(0, num_episodes=20)


def config(model="feedforward", **changes):
    settings = {"horizon": 2, "num_candidates": 6, "policy": POLICY, "termination": "never"}
    return crr_planning.Config(dynamics=MODELS[model], **{**settings, **changes})


def trained(settings):
    """(learner, state, context) after the model's and the policy's few updates."""
    stage = crr_planning.pretrain(settings, PROBLEM.spec)["model"]
    data = stage.prepare(PROBLEM.dataset)
    context = Context(statistics=stage.statistics(data))
    fitted = fit.fit(stage.learner, data, key=KEY, num_updates=2, context=context)
    model = (stage.outputs or stage.learner.policy_params)(fitted.state.learner, context)
    context = Context(statistics=normalize.statistics(PROBLEM.dataset), upstream={"model": model})
    learner = crr_planning.make(settings, PROBLEM.spec)
    result = fit.fit(learner, PROBLEM.dataset, key=KEY, num_updates=3, context=context)
    return learner, result.state.learner, context


@pytest.fixture(scope="module", params=MODELS)
def run(request):
    settings = config(request.param)
    return settings, *trained(settings)


def act(learner, params, *, greedily=True, key=KEY):
    choose = learner.policy.act_greedily if greedily else learner.policy.act
    return jax.jit(choose)(params, learner.policy.init(params, STATE, key), STATE, key)[0]


def test_it_learns_bit_for_bit_as_crr_does(run):
    settings, _, state, _ = run
    alone = crr.make(settings.policy, PROBLEM.spec)
    result = fit.fit(alone, PROBLEM.dataset, key=KEY, num_updates=3)
    jax.tree.map(np.testing.assert_array_equal, state, result.state.learner)


def test_a_budget_of_zero_is_crr(run):
    settings, _, state, context = run
    learner = crr_planning.make(config(budget=0), PROBLEM.spec)
    params = learner.policy_params(state, context)
    alone = crr.make(settings.policy, PROBLEM.spec).policy
    own = params["policy"]
    np.testing.assert_array_equal(act(learner, params), jax.jit(alone.mode)(own, STATE))
    sampled = act(learner, params, greedily=False)
    np.testing.assert_array_equal(sampled, jax.jit(alone.sample)(own, STATE, KEY))


def test_an_actor_plans_within_the_bounds_and_its_key_decides(run):
    _, learner, state, context = run
    assert isinstance(learner.policy, Actor)
    params = learner.policy_params(state, context)
    for greedily in (True, False):
        actions = [
            act(learner, params, greedily=greedily, key=jax.random.key(seed)) for seed in (0, 0, 1)
        ]
        assert float(jnp.max(jnp.abs(jnp.stack(actions)))) <= 1.0
        np.testing.assert_array_equal(actions[0], actions[1])
        assert float(jnp.abs(actions[0] - actions[2]).max()) > 0.0


def test_an_exported_planner_acts_alike(run, tmp_path):
    settings, learner, state, context = run
    params = learner.policy_params(state, context)
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    export.save(
        tmp_path,
        algorithm="crr_planning",
        config=settings,
        spec=PROBLEM.spec,
        params=stacked,
        seeds=[0],
    )
    loaded = export.load_policy(tmp_path)
    action, _ = loaded.act_greedily(loaded.init(STATE, KEY), STATE, KEY)
    np.testing.assert_allclose(action, act(learner, params), rtol=1e-5)


def test_what_follows_the_horizon_is_the_least_critic():
    settings = crr.Config(critic="squared", num_critics=3, critic_layers=(8,))
    critic = crr.critic(settings, PROBLEM.spec)
    params = critic.init(KEY)
    action = jnp.array([0.3])
    value = crr_planning.critic_tail(settings, PROBLEM.spec)({"critic": params}, STATE, action, KEY)
    q = critic.q(params, STATE[None], action[None])
    assert q.shape == (3, 1)
    np.testing.assert_allclose(value, np.min(q), rtol=1e-6)


def test_at_horizon_zero_and_cold_the_best_action_by_the_critic_acts(run):
    _, _, state, context = run
    cold = crr_planning.make(config(horizon=0, num_candidates=64, temperature=0.01), PROBLEM.spec)
    params = cold.policy_params(state, context)
    action = act(cold, params)
    tail = crr_planning.critic_tail(POLICY, PROBLEM.spec)
    sample = jax.vmap(crr.make(POLICY, PROBLEM.spec).policy.sample, (None, None, 0))
    others = sample(params["policy"], STATE, jax.random.split(KEY, 200))
    values = jax.vmap(lambda action: tail(params, STATE, action, KEY))(others)
    ours = tail(params, STATE, action, KEY)
    assert float(ours) > float(jnp.quantile(values, 0.9))


def test_inputs_that_the_planner_would_not_share_are_refused():
    inputs = InputConfig(reward_scale=2.0)
    with pytest.raises(UsageError, match=r"policy\.inputs"):
        crr_planning.make(config(policy=crr.Config(inputs=inputs)), PROBLEM.spec)
