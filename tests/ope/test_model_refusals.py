"""What evaluation in a model refuses, each with one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear

from offline_mbrl.ope import model_based
from offline_mbrl.types import UsageError

MODEL, POLICY, PARAMS, ACTING = linear.model(), linear.policy(), linear.params(3, spread=0.3), linear.policy_params()
SETTINGS = {"gamma": 0.9, "horizon": 8, "bounds": None}
STARTS = jnp.ones((6, 3))


def estimated(params=PARAMS, acting=ACTING, starts=STARTS, policy=POLICY, estimate=model_based.estimate):
    return estimate(MODEL, params, policy, acting, starts, jax.random.key(0), **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\]"), ({"horizon": 0}, "horizon at least 1"),
        ({"num_rollouts": 1}, "num_rollouts at least 2"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        model_based.make(MODEL, POLICY, **{**SETTINGS, **settings})


@pytest.mark.parametrize(("changed", "message"), [
    ({"starts": jnp.zeros((5, 4))}, r"shape \(3,\), got \(4,\) each"),
    ({"starts": jnp.zeros((0, 3))}, "starts are empty"),
    ({"starts": [0.0, 1.0, 2.0]}, r"shape \(3,\), got 3 arrays or numbers"),
    ({"acting": {**ACTING, "K": jnp.zeros((1, 3))}}, r"action has shape \(1,\), but the model takes \(2,\)"),
    ({"acting": {**ACTING, "K": jnp.zeros((2, 4))}}, r"cannot act on one observation of shape \(3,\)"),
    ({"estimate": model_based.estimate_many}, "same leading axis"),
    ({"params": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS)}, "axis .* take those of one seed"),
    ({"policy": POLICY._replace(sample=lambda *args: jnp.array([1, -1]))}, "of int32, but the model takes floating"),
])  # fmt: skip
def test_what_does_not_fit_the_model_is_refused_with_both_shapes(changed, message):
    with pytest.raises(UsageError, match=message):
        estimated(**changed)


def test_whole_numbers_are_taken_for_observations():
    np.testing.assert_allclose(estimated(starts=np.ones((6, 3), np.int32)).value, estimated().value)
