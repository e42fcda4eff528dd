"""What evaluation in a model refuses, each with one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.ope import model_based, support
from offline_mbrl.rollouts import shares
from offline_mbrl.types import UsageError

MODEL = linear.model()
POLICY = linear.policy()
PARAMS = linear.params(3, spread=0.3)
ACTING = linear.policy_params()
STARTS = jnp.ones((6, 3))


def rollouts_of(policy=POLICY, *, gamma=0.9, horizon=8, **settings):
    return model_based.explicit_rollouts(
        MODEL, policy, gamma=gamma, horizon=horizon, bounds=None, **settings
    )


def estimated(params=PARAMS, acting=ACTING, starts=STARTS, policy=POLICY, many=False):
    estimator = model_based.make(rollouts_of(policy))
    estimator = jax.jit(model_based.many(estimator) if many else estimator)
    return estimator(params, acting, starts, jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1.5}, r"gamma must be in \(0, 1\]"), ({"horizon": 0}, "horizon at least 1")],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        rollouts_of(**settings)


def test_a_single_rollout_has_no_error_and_is_refused():
    with pytest.raises(UsageError, match="num_rollouts must be at least 2, got 1"):
        model_based.make(rollouts_of(), num_rollouts=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"starts": jnp.zeros((5, 4))}, r"shape \(3,\), got \(4,\) each"),
        ({"starts": jnp.zeros((0, 3))}, "starts are empty"),
        ({"starts": [0.0, 1.0, 2.0]}, r"shape \(3,\), got 3 arrays or numbers"),
        (
            {"acting": {**ACTING, "K": jnp.zeros((1, 3))}},
            r"action has shape \(1,\), but the model takes \(2,\)",
        ),
        (
            {"acting": {**ACTING, "K": jnp.zeros((2, 4))}},
            r"cannot act on one observation of shape \(3,\)",
        ),
        ({"many": True}, "same leading axis"),
        (
            {"params": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)},
            "axis .* take those of one seed",
        ),
        (
            {"policy": POLICY._replace(sample=lambda *args: jnp.array([1, -1]))},
            "of int32, but the model takes floating",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_both_shapes(changed, message):
    with pytest.raises(UsageError, match=message):
        estimated(**changed)


def test_measures_of_several_members_are_refused_where_each_rolls_alone():
    alone = model_based.make(rollouts_of(measure=support.disagreement, spread=shares.by_member))
    with pytest.raises(UsageError, match=r"compares members.*shares\.jointly"):
        jax.jit(alone)(PARAMS, ACTING, STARTS, jax.random.key(0))


def test_whole_numbers_are_taken_for_observations():
    whole = estimated(starts=np.ones((6, 3), np.int32))
    np.testing.assert_allclose(whole.value, estimated().value)
