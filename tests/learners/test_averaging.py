"""Acting by a moving average of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl.learners.parts import averaging
from offline_mbrl.types import Context, Learner

CONTEXT = Context(statistics=None)
KEY = jax.random.key(0)


def counting(validate=None):
    """A learner whose parameters are the number of its updates."""

    def step(state, context, batch, key):
        return state + 1.0, {"loss/total": state}

    return Learner(
        sample=lambda dataset, cache, key: (),
        init=lambda key, example, context: jnp.zeros(()),
        step=step,
        policy=None,
        policy_params=lambda state, context: {"count": state},
        validate=validate,
    )


def averages(decay, updates):
    learner = averaging.acting_by_average(counting(), decay)
    state = learner.init(KEY, (), CONTEXT)
    found = []
    for _ in range(updates):
        state, metrics = learner.step(state, CONTEXT, (), KEY)
        found.append(float(learner.policy_params(state, CONTEXT)["count"]))
    assert float(metrics["loss/total"]) == updates - 1
    return found


def test_at_first_it_is_the_plain_mean_without_the_initial_parameters():
    np.testing.assert_allclose(averages(0.9, 10), np.cumsum(np.arange(1, 11)) / np.arange(1, 11))


def test_then_it_is_a_moving_average():
    by_hand = [1.0, 1.5]
    for count in range(3, 13):
        by_hand.append(by_hand[-1] + 0.5 * (count - by_hand[-1]))
    np.testing.assert_allclose(averages(0.5, 12), by_hand, rtol=1e-6)
    # Of a line it lags decay / (1 - decay) updates behind.
    np.testing.assert_allclose(averages(0.5, 60)[-1], 60 - 1.0, rtol=1e-5)


@pytest.mark.parametrize("measured", [False, True])
def test_held_out_losses_are_those_of_the_last_parameters(measured):
    def validate(state, context, batch, key):
        return {"loss/total": state}

    learner = averaging.acting_by_average(counting(validate if measured else None), 0.9)
    if not measured:
        assert learner.validate is None
        return
    state = learner.init(KEY, (), CONTEXT)
    for _ in range(3):
        state, _ = learner.step(state, CONTEXT, (), KEY)
    assert float(learner.validate(state, CONTEXT, (), KEY)["loss/total"]) == 3.0
