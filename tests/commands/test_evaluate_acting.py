"""`evaluate --acting` and `--budget`: the same parameters, with and without their planner."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import export, policies
from offline_mbrl.algorithms.planned import crr_planning
from offline_mbrl.commands import evaluate
from offline_mbrl.data import normalize
from offline_mbrl.learners import crr
from offline_mbrl.models import feedforward, kinds
from offline_mbrl.problems import linear_quadratic
from offline_mbrl.types import Context, UsageError

PROBLEM = linear_quadratic.linear_quadratic(0, num_episodes=5)
STATE = jnp.array([0.5, -0.2])
KEY = jax.random.key(0)
CONFIG = crr_planning.Config(
    dynamics=feedforward.FeedforwardConfig(hidden_layers=(8,), num_members=2),
    policy=crr.Config(actor_layers=(8,), critic_layers=(8,)),
    termination="never",
    horizon=2,
    num_candidates=8,
)


def save(folder, algorithm, config, learner, context):
    params = learner.policy_params(learner.init(KEY, None, context), context)
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    about = {"algorithm": algorithm, "config": config, "spec": PROBLEM.spec, "seeds": [0]}
    export.save(folder, params=stacked, **about)
    return folder


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    """Of parameters as they start."""
    model = kinds.make(CONFIG.dynamics, PROBLEM.spec)
    params = model.init(KEY, normalize.full_statistics(PROBLEM.dataset))
    context = Context(upstream={"model": params})
    learner = crr_planning.make(CONFIG, PROBLEM.spec)
    return save(tmp_path_factory.mktemp("planner"), "crr_planning", CONFIG, learner, context)


def greedy_action(planner, **options):
    exported = evaluate.loaded(evaluate.Options(planner, **options))
    params = jax.tree.map(lambda leaf: leaf[0], exported.params)
    actor = policies.as_actor(exported.policy)
    act = jax.jit(actor.act_greedily)
    return np.asarray(act(params, actor.init(params, STATE, KEY), STATE, KEY)[0])


def test_a_run_that_plans_is_played_without_its_planner_and_with_less_of_it(planner):
    exported = export.load(planner)
    own = jax.tree.map(lambda leaf: leaf[0], exported.params["policy"])
    alone = jax.jit(crr.make(CONFIG.policy, PROBLEM.spec).policy.mode)(own, STATE)
    np.testing.assert_array_equal(greedy_action(planner, acting="policy"), alone)
    trained = greedy_action(planner)
    fewer = greedy_action(planner, budget=6)  # 3 of 8 candidates, of 2 steps
    actions = np.concatenate([alone, trained, fewer])
    assert len(np.unique(actions)) == 3


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, {}),
        ({"acting": "policy"}, {"budget": 0}),
        ({"acting": "policy", "budget": 0}, {"budget": 0}),
        ({"acting": "planner"}, {"budget": None}),
        ({"acting": "planner", "budget": 6}, {"budget": 6}),
        ({"budget": 6}, {"budget": 6}),
    ],
)
def test_options_become_a_budget(planner, options, changes):
    assert evaluate.overrides(evaluate.Options(planner, **options)) == changes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1}, "--budget must be at least 0"),
        ({"acting": "policy", "budget": 10}, "takes no model steps"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(planner, options, message):
    with pytest.raises(UsageError, match=message):
        evaluate.loaded(evaluate.Options(planner, **options))


def test_an_algorithm_without_a_planner_says_so(tmp_path):
    learner = crr.make(CONFIG.policy, PROBLEM.spec)
    folder = save(tmp_path / "policy", "crr", CONFIG.policy, learner, Context())
    with pytest.raises(UsageError, match="crr acts without a planner"):
        evaluate.loaded(evaluate.Options(folder, acting="planner"))


def test_a_setting_that_an_algorithm_does_not_have_is_refused(planner):
    with pytest.raises(UsageError, match="crr_planning has no setting 'depth'"):
        export.load(planner, overrides={"depth": 3})
