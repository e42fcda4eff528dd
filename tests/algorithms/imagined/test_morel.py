"""MOReL: its threshold by every rule, and what halting gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear
import transition_rows

from offline_mbrl.algorithms.imagined import morel
from offline_mbrl.data import memory, normalize
from offline_mbrl.training import fit
from offline_mbrl.types import Context, MemberPredictions, Prediction

KEY = jax.random.key(0)
MODEL = linear.model()
PARAMS = linear.params(3, limit=4.0)
DISAGREEMENTS = jnp.arange(101.0) / 10


def config(**settings):
    return morel.Config(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pessimism": 4.0}, 2.5),
        ({"threshold": "mean_plus_beta_std", "beta": 2.0}, 5 + 2 * np.std(DISAGREEMENTS)),
        ({"threshold": "quantile", "quantile": 0.9}, 9.0),
    ],
)
def test_the_threshold_follows_its_rule(settings, expected):
    threshold = morel.threshold(config(**settings), DISAGREEMENTS)
    np.testing.assert_allclose(threshold, expected, rtol=1e-5)


def test_the_stage_judges_transitions_of_the_data():
    rows = transition_rows.batch(size=300)
    data = memory.Dataset.from_arrays(
        {
            "observation": np.asarray(rows.observation),
            "action": np.asarray(rows.action),
            "reward": np.asarray(rows.reward),
            "is_last": np.arange(300) == 299,
            "is_terminal": np.zeros(300, bool),
        }
    )
    settings = config(num_judged=600, pessimism=1.0)
    judge = morel.judge(settings, MODEL, transition_rows.SPEC)
    context = Context(statistics=normalize.statistics(data), upstream={"model": PARAMS})
    result = fit.fit(judge, data, key=KEY, num_updates=3, block_updates=3, context=context)
    members = jax.vmap(jax.vmap(linear.mean, (0, None, None)), (None, 0, 0))(
        PARAMS.network["members"], rows.observation, rows.action
    )
    means = np.asarray(members)[:299, :, :-1]
    pairs = np.linalg.norm(means[:, :, None] - means[:, None], axis=-1).max(axis=(1, 2))
    values = np.asarray(result.state.learner.values)
    assert np.abs(values[:, None] - pairs).min(axis=1).max() < 1e-5
    assert len(np.unique(values.round(6))) > 200
    threshold = judge.policy_params(result.state.learner, context)
    np.testing.assert_allclose(threshold, values.max(), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "reward"), [({"kappa": 7.0}, -7.0), ({"halt_offset": 30.0}, -4.0 - 30.0)]
)
def test_halting_gives_minus_kappa_or_less_than_the_data(settings, reward):
    context = Context(upstream={"model": PARAMS, "threshold": jnp.array(1.0)})
    halt = morel.halting(config(**settings), context)
    for distance, expected in ((0.9, (2.0, 1.0)), (1.1, (reward, 0.0))):
        members = MemberPredictions(
            mean=jnp.array([[0.0, 0.0, 0.0], [distance, 0.0, 9.0]]), std=jnp.ones((2, 3))
        )
        prediction = Prediction(jnp.zeros(2), jnp.array(2.0), jnp.ones(()), members)
        after = halt.apply(PARAMS, jnp.zeros(2), jnp.zeros(1), prediction, KEY)
        assert (after.reward, after.discount) == expected


def test_the_stages_come_in_order():
    stages = morel.pretrain(config(num_judged=1_025), transition_rows.SPEC)
    assert list(stages) == ["model", "threshold"]
    assert stages["threshold"].num_updates == 5
