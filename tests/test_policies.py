import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import policies
from offline_mbrl.types import Actor, BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

CONTINUOUS = EnvironmentSpec(
    jax.ShapeDtypeStruct((3,), jnp.float32), BoundedActions((-2.0, -2.0), (2.0, 2.0))
)
DISCRETE = EnvironmentSpec(jax.ShapeDtypeStruct((3,), jnp.float32), DiscreteActions(4))
KEY = jax.random.key(0)
OBSERVATIONS = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)


def scaled(size):
    """A deterministic policy with actions in [-size, size]."""
    return policies.as_policy(lambda params, observation, key: size * jnp.tanh(observation[:2]))


def check(policy, spec=CONTINUOUS, observations=OBSERVATIONS, **settings):
    policies.check(policy, (), spec, observations, KEY, **settings)


def test_a_pure_function_becomes_a_policy():
    policy = policies.as_policy(
        lambda params, observation, key: params * observation, mode=lambda p, o: o
    )
    np.testing.assert_array_equal(policy.sample(2.0, jnp.ones(2), KEY), [2, 2])
    np.testing.assert_array_equal(policy.mode(2.0, jnp.ones(2)), [1, 1])
    assert policy.log_prob is None
    check(scaled(1.0))


def test_a_missing_mode_says_what_to_do():
    with pytest.raises(
        UsageError, match=r"has no greedy action: use `sample`, or give as_policy\(..., mode="
    ):
        scaled(1.0).mode((), jnp.zeros(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda observation: observation,
        lambda params, observation: observation,
        lambda params, observation, key, more: observation,
    ],
)
def test_functions_with_other_arguments_are_refused(function):
    with pytest.raises(
        UsageError, match=r"a policy is a function \(params, observation, key\) -> action"
    ):
        policies.as_policy(function)


def test_functions_that_take_three_arguments_in_any_way_are_taken():
    def keyed(params, observation, key, *, scale=1.0):
        return scale * observation[:2]

    check(policies.as_policy(functools.partial(keyed, scale=0.1)), tolerated=0.1)
    check(policies.as_policy(jax.jit(lambda params, observation, key: jnp.tanh(observation[:2]))))


def test_a_policy_that_fails_on_the_observation_names_its_shape_and_the_cause():
    policy = policies.as_policy(lambda params, observation, key: jnp.ones((2, 5)) @ observation)
    with pytest.raises(
        UsageError, match=r"cannot act on one observation of shape \(3,\): .*not a batch"
    ):
        check(policy)


def test_an_action_of_another_shape_is_refused_with_both():
    wide = policies.as_policy(lambda params, observation, key: observation)
    with pytest.raises(
        UsageError, match=r"action has shape \(3,\), but this environment's has \(2,\)"
    ):
        check(wide)
    column = policies.as_policy(lambda params, observation, key: observation[:2, None])
    with pytest.raises(UsageError, match=r"action has shape \(2, 1\)"):
        check(column)
    pair = policies.as_policy(lambda params, observation, key: (observation, observation))
    with pytest.raises(UsageError, match="must return one array as its action, got tuple"):
        check(pair)


def test_an_action_of_another_kind_is_refused():
    index = policies.as_policy(lambda params, observation, key: jnp.argmax(observation))
    check(index, DISCRETE)
    with pytest.raises(UsageError, match=r"action has shape \(\)"):
        check(index)
    with pytest.raises(UsageError, match="takes an integer"):
        check(policies.as_policy(lambda params, observation, key: observation[0]), DISCRETE)
    with pytest.raises(UsageError, match="takes floating numbers"):
        check(policies.as_policy(lambda params, observation, key: jnp.zeros(2, int)))
    with pytest.raises(UsageError, match=r"go from 7 to 7, but there are 0 .. 3"):
        check(policies.as_policy(lambda params, observation, key: jnp.array(7)), DISCRETE)


def test_actions_in_the_simulators_units_are_refused():
    with pytest.raises(
        UsageError, match=r"% of the policy's actions are outside \[-1, 1\] \(they go from -2 to"
    ):
        check(scaled(2.0))
    check(scaled(2.0), tolerated=1.0)


def test_the_tails_of_a_normal_policy_are_tolerated():
    check(policies.as_policy(lambda params, observation, key: 0.4 * jax.random.normal(key, (2,))))


def test_actions_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="100% of the policy's actions are not finite"):
        check(policies.as_policy(lambda params, observation, key: jnp.full(2, jnp.nan)))


def test_actions_outside_the_datas_range_are_refused_with_the_entry_and_both_ranges():
    actions = np.random.default_rng(0).uniform(-1, 1, (400, 2)).astype(np.float32)
    check(scaled(0.9), actions=actions)
    actions[:, 1] *= 0.1
    with pytest.raises(
        UsageError,
        match=r"% of the policy's actions are outside the data's: there, entry 1 is between",
    ):
        check(scaled(0.9), actions=actions)
    with pytest.raises(UsageError, match="have 2 entries, but the data's have 3"):
        check(scaled(0.9), actions=np.zeros((5, 3)))
    with pytest.raises(UsageError, match="entry 0 is between 1 and 2"):
        check(
            policies.as_policy(lambda params, o, key: jnp.array(3)),
            DISCRETE,
            actions=np.array([1, 2, 2]),
        )


def test_a_density_that_is_not_one_number_is_refused_at_the_door():
    def density(params, observation, action):
        return action**2

    with pytest.raises(UsageError, match=r"log_prob has shape \(2,\) for one action"):
        check(scaled(1.0)._replace(log_prob=density))
    check(scaled(1.0)._replace(log_prob=lambda *args: jnp.sum(density(*args))))


def test_a_bare_function_is_told_to_become_a_policy():
    with pytest.raises(
        UsageError, match=r"a policy is needed, got function: make one of a function with as_policy"
    ):
        policies.action_of(lambda params, observation, key: observation, (), jnp.zeros(3))


def test_clipped_actions_are_what_a_simulator_takes():
    policy = policies.as_policy(
        lambda p, o, key: p * o, mode=lambda p, o: p * o, log_prob=lambda p, o, a: jnp.sum(a)
    )
    inside = policies.clipped(policy)
    np.testing.assert_array_equal(
        inside.sample(2.0, jnp.array([-1.0, 0.25, 3.0]), KEY), [-1.0, 0.5, 1.0]
    )
    np.testing.assert_array_equal(inside.mode(2.0, jnp.array([-1.0, 0.25])), [-1.0, 0.5])
    np.testing.assert_array_equal(
        policies.clipped(policy, 0.0, 6.0).sample(2.0, jnp.array([-1.0, 3.0]), KEY), [0, 6]
    )
    assert inside.log_prob is policy.log_prob


def test_observations_may_be_few_or_a_tree():
    check(scaled(1.0), observations=OBSERVATIONS[:1])
    tree = policies.as_policy(lambda params, observation, key: jnp.tanh(observation["a"]))
    check(tree, observations={"a": OBSERVATIONS[:, :2], "b": OBSERVATIONS})


# --- actors ---

COUNTING = Actor(  # acts with the number of steps since the first observation
    init=lambda params, observation, key: jnp.zeros((), jnp.int32),
    act=lambda params, carry, observation, key: (jnp.full(2, 0.1) * carry, carry + 1),
)


def test_a_policy_lifts_into_an_actor_whose_carry_is_empty_and_whose_actions_are_the_same():
    policy = policies.as_policy(
        lambda params, observation, key: params * jax.random.normal(key, (2,)),
        mode=lambda params, observation: params * observation[:2],
    )
    actor = policies.as_actor(policy)
    assert not policies.is_actor(policy)
    assert policies.is_actor(actor)
    observation = jnp.arange(3.0)
    carry = actor.init(2.0, observation, KEY)
    assert carry == ()
    action, carry = actor.act(2.0, carry, observation, KEY)
    np.testing.assert_array_equal(action, policy.sample(2.0, observation, KEY))
    action, carry = actor.act_greedily(2.0, carry, observation, KEY)
    np.testing.assert_array_equal(action, policy.mode(2.0, observation))
    assert carry == ()


def test_an_actor_stays_itself_and_acts_greedily_as_it_acts():
    actor = policies.as_actor(COUNTING)
    assert actor.act is COUNTING.act
    assert actor.act_greedily is COUNTING.act


def test_what_is_neither_policy_nor_actor_is_refused():
    with pytest.raises(UsageError, match=r"a policy is needed, got int: make one of a function"):
        policies.as_actor(3)


def test_a_caller_that_needs_single_actions_refuses_an_actor_by_name():
    policy = scaled(1.0)
    assert policies.require_memoryless(policy, "fitted Q evaluation") is policy
    with pytest.raises(UsageError, match=r"fitted Q evaluation needs a policy .* carries a state"):
        policies.require_memoryless(COUNTING, "fitted Q evaluation")


def test_an_actor_is_checked_by_its_first_action():
    check(COUNTING)
    wide = COUNTING._replace(act=lambda params, carry, observation, key: (observation, carry))
    with pytest.raises(UsageError, match=r"action has shape \(3,\)"):
        check(wide)


def test_an_actor_whose_carry_changes_is_refused():
    def grow(params, carry, observation, key):
        return jnp.zeros(2), jnp.zeros(3)

    with pytest.raises(UsageError, match="must keep its structure, shapes and dtypes"):
        check(COUNTING._replace(act=grow))
