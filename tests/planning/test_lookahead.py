"""Lookahead over all sequences of actions, against the recursion written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planning_examples import GAMMA, KEY, random_embeddings, random_model

from offline_mbrl.planning import lookahead, one_step
from offline_mbrl.types import UsageError

TEMPERATURE = 20.0  # values run to 100: the prior and the values both matter


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


# name -> (planner of a depth, the backup in numpy)
BACKUPS = {
    "softmax": (
        functools.partial(lookahead.softmax_backup, temperature=TEMPERATURE),
        lambda prior, q: softmax(prior + q / TEMPERATURE) @ q,
    ),
    "max": (lookahead.max_backup, lambda prior, q: q.max()),
    "own": (
        functools.partial(
            lookahead.make, backup=lambda prior, q: jnp.dot(jax.nn.softmax(prior), q)
        ),
        lambda prior, q: softmax(prior) @ q,
    ),
}


def expectimax(model, params, num_actions, depth, backup):
    """`(embedding) -> q_depth [A]`, one state after another."""

    @jax.jit
    def look(embedding):
        heads = model.predict(params, embedding)
        following = [model.dynamics(params, embedding, jnp.int32(a)) for a in range(num_actions)]
        return (
            heads.policy_logits,
            model.scalar(heads.reward_logits),
            model.scalar(heads.value_logits),
            following,
        )

    def value(embedding, steps):
        prior, _, value_now, _ = look(embedding)
        return (
            float(value_now) if steps == 0 else backup(np.asarray(prior), qvalues(embedding, steps))
        )

    def qvalues(embedding, steps):
        following = look(embedding)[3]
        return np.array(
            [float(look(child)[1]) + GAMMA * value(child, steps - 1) for child in following]
        )

    return lambda embedding: qvalues(embedding, depth)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", BACKUPS)
def test_it_equals_exhaustive_expectimax(name, depth):
    make, backup = BACKUPS[name]
    model, params = random_model(3, scale=0.5)
    embeddings = random_embeddings(4)
    plan = jax.jit(make(model, num_actions=3, gamma=GAMMA, depth=depth))(params, embeddings, KEY)
    reference = expectimax(model, params, 3, depth, backup)
    expected = np.stack([reference(embedding) for embedding in embeddings])
    np.testing.assert_allclose(plan.qvalues, expected, rtol=1e-5, atol=1e-5)
    heads = jax.vmap(model.predict, (None, 0))(params, embeddings)
    value = jax.vmap(model.scalar)(heads.value_logits)
    np.testing.assert_allclose(plan.value, value, rtol=1e-5, atol=1e-6)
    weights = [
        softmax(prior + q)
        for prior, q in zip(np.asarray(heads.policy_logits), expected, strict=True)
    ]
    np.testing.assert_allclose(plan.weights, weights, atol=1e-5)
    np.testing.assert_allclose(
        plan.improved_value, np.sum(weights * expected, axis=1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("make", [lookahead.softmax_backup, lookahead.max_backup])
@pytest.mark.parametrize("num_actions", [2, 18])
def test_one_step_of_it_is_exact_one_step(make, num_actions):
    model, params = random_model(num_actions)
    embeddings = random_embeddings(8)
    plan = jax.jit(make(model, num_actions=num_actions, gamma=GAMMA, depth=1))(
        params, embeddings, KEY
    )
    exact = jax.jit(one_step.exact(model, num_actions=num_actions, gamma=GAMMA))(
        params, embeddings, KEY
    )
    for ours, theirs in zip(plan, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_softmax_without_temperature_is_the_maximum():
    model, params = random_model(3, scale=0.5)
    embeddings = random_embeddings(8)
    cold = lookahead.softmax_backup(model, num_actions=3, gamma=GAMMA, depth=2, temperature=1e-4)
    largest = lookahead.max_backup(model, num_actions=3, gamma=GAMMA, depth=2)
    plans = [jax.jit(planner)(params, embeddings, KEY).qvalues for planner in (cold, largest)]
    np.testing.assert_allclose(*plans, rtol=1e-3, atol=1e-3)


def test_policies_below_the_root_are_predicted_only_for_a_backup_that_reads_them():
    model, params = random_model(3)

    def flops(make):
        planner = jax.jit(make(model, num_actions=3, gamma=GAMMA, depth=2))
        return planner.lower(params, random_embeddings(64), KEY).compile().cost_analysis()["flops"]

    policies = 64 * 3 * 2 * 8 * 3  # one layer [8, 3] at three children of 64 roots
    assert flops(lookahead.softmax_backup) - flops(lookahead.max_backup) >= policies


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth is 0; give a whole number of at least 1"),
        (
            {"num_actions": 18, "depth": 4},
            "has 104976 leaves per root, above 100000; look less deep",
        ),
        ({"temperature": 0.0}, "temperature is 0.0; give more than 0"),
    ],
)
def test_settings_that_make_no_lookahead_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        lookahead.softmax_backup(
            random_model(2)[0], **{"num_actions": 2, "depth": 1} | settings, gamma=GAMMA
        )
