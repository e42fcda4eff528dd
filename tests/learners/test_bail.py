"""BAIL: closed forms of its envelope and of its selection, and what its stages hand on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transition_rows import SPEC

from offline_mbrl.data import normalize, stream
from offline_mbrl.data.memory import Dataset
from offline_mbrl.learners import bail
from offline_mbrl.problems import toy
from offline_mbrl.training.stages import MAIN, of_algorithm, plain, train_stages
from offline_mbrl.types import Algorithm, Context, UsageError

ALGORITHM = Algorithm(config=bail.Config, make=bail.make, pretrain=bail.pretrain)
SMALL = {
    "num_updates": 2,
    "batch_size": 8,
    "actor_layers": (8,),
    "envelope": bail.EnvelopeConfig(num_updates=2, batch_size=8, layers=(8,)),
}


def problem() -> toy.Problem:
    return toy.bandit(0, num_steps=200)


# --- the envelope ---


def mean_loss(value, total, coef):
    losses = jax.vmap(lambda v, g: bail.envelope_loss(v, g, coef=coef))
    return jnp.mean(losses(jnp.asarray(value), jnp.asarray(total)))


def test_returns_above_the_envelope_weigh_more():
    np.testing.assert_allclose(mean_loss([2.0, 1.0], [1.0, 3.0], 1_000.0), 2_000.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("total", "coef", "expected"),
    [
        ([0.0, 1.0, 2.0, 10.0], 1_000.0, 9.973081),
        ([0.0, 1.0], 1_000.0, 0.999001),
        ([0.0, 1.0, 2.0, 10.0], 1.0, 3.25),  # the mean
    ],
)
def test_the_loss_is_least_at_the_constant_envelope(total, coef, expected):
    def loss(value):
        return mean_loss(jnp.full(len(total), value), total, coef)

    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(expected)) / coef, 0.0, atol=1e-4)
    assert loss(expected) < min(loss(expected - 0.05), loss(expected + 0.05))


def test_values_below_one_are_replaced_by_positive_ones():
    np.testing.assert_allclose(
        bail.positive(np.array([0.5, 0.0, -3.0, 1.0, 200.0])),
        [0.606531, 0.367879, 0.018316, 1.0, 200.0],
        rtol=1e-4,
    )


# --- selection ---

RETURNS = np.array([1.0, 4.0, 9.0, 6.0])
VALUES = np.array([10.0, 5.0, 10.0, 12.0])


@pytest.mark.parametrize("selection", ["ratio", "difference", "automatic"])
def test_the_rows_closest_to_the_envelope_are_kept(selection):
    np.testing.assert_allclose(bail.ratio(RETURNS, VALUES), [0.1, 0.8, 0.9, 0.5])
    np.testing.assert_allclose(bail.difference(RETURNS, VALUES), [-9.0, -1.0, -1.0, -6.0])
    kept = bail.best_rows(RETURNS, VALUES, fraction=0.5, selection=selection)
    np.testing.assert_array_equal(kept, [1, 2])


def test_negative_returns_are_compared_by_their_difference():
    """The ratio would prefer the row that is further below its envelope."""
    total = np.array([-5.0, -5.0])
    value = np.array([-4.0, 10.0])
    assert bail.ratio(total, value)[1] > bail.ratio(total, value)[0]
    kept = bail.best_rows(total, value, fraction=0.5, selection="automatic")
    np.testing.assert_array_equal(kept, [0])
    with pytest.raises(UsageError, match=r"needs returns of at least 0.*use difference"):
        bail.best_rows(total, value, fraction=0.5, selection="ratio")


def test_both_ways_to_select_agree_under_a_constant_envelope():
    total = np.random.default_rng(0).uniform(0.0, 10.0, 50)
    rows = [
        bail.best_rows(total, np.full(50, 9.0), fraction=0.3, selection=selection)
        for selection in ("ratio", "difference")
    ]
    np.testing.assert_array_equal(*rows)
    np.testing.assert_array_equal(rows[0], np.sort(np.argsort(-total)[:15]))


# --- stages ---


def stages(**settings):
    return of_algorithm(ALGORITHM, bail.Config(**{**SMALL, **settings}), problem().spec)


@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_the_last_stage_sees_the_rows_that_are_kept(seeds):
    shown = {}
    data = problem().dataset
    run = plain(seeds=seeds, block_updates=2)

    def run_stage(name, stage, dataset, context, key):
        shown[name] = dataset
        return run(name, stage, dataset, context, key)

    trained = train_stages(
        stages(fraction=0.1),
        data,
        key=jax.random.key(0),
        run_stage=run_stage,
        statistics=normalize.statistics(data),
    )
    rows = np.asarray(data.starts)
    np.testing.assert_allclose(shown["envelope"].extras["return"][rows], data.reward[rows])
    value = envelope_of(trained.upstream["envelope"], data.observation[rows], seeds)
    closest = np.sort(rows[np.argsort(-(data.reward[rows] - value), kind="stable")[:20]])
    np.testing.assert_array_equal(shown[MAIN].starts, closest)
    assert not jax.tree.leaves(shown[MAIN].extras)


def envelope_of(params, observations, seeds):
    """`[N]`, written out; the mean over seeds."""

    def value(params):
        hidden = observations @ params["layer_0"]["kernel"] + params["layer_0"]["bias"]
        return np.maximum(hidden, 0.0) @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]

    params = jax.tree.map(np.asarray, params)
    if seeds is None:
        return value(params)[:, 0]
    values = [value(jax.tree.map(lambda leaf, i=i: leaf[i], params)) for i in range(len(seeds))]
    return np.mean(values, axis=0)[:, 0]


def test_nothing_is_measured_on_held_out_data_without_returns():
    envelope = stages()["envelope"]
    data = problem().dataset
    batch = envelope.learner.sample(envelope.prepare(data), None, jax.random.key(0))
    state = envelope.learner.init(jax.random.key(1), batch, Context())
    assert "loss/total" in envelope.learner.validate(state, Context(), batch, jax.random.key(2))
    raw = envelope.learner.sample(data, None, jax.random.key(0))
    assert envelope.learner.validate(state, Context(), raw, jax.random.key(2)) == {}


def test_data_on_the_disk_are_refused():
    column = stream.Column(read=lambda rows: rows, shape=(4,), dtype=np.dtype(np.float32))
    with pytest.raises(UsageError, match="needs the dataset in memory"):
        stages()["envelope"].prepare(Dataset(*[column] * 6))


def test_the_decay_of_the_envelope_is_a_part_of_its_gradient():
    """As Adam's of the release, not decoupled from it: a large one only turns the step."""
    settings = bail.EnvelopeConfig(num_updates=1, batch_size=8, layers=(8,), weight_decay=1e6)
    envelope = stages(envelope=settings)["envelope"]
    data = envelope.prepare(problem().dataset)
    batch = envelope.learner.sample(data, None, jax.random.key(0))
    before = envelope.learner.init(jax.random.key(1), batch, Context())
    after, _ = envelope.learner.step(before, Context(), batch, jax.random.key(2))
    change = optax.tree.sub(after.params, before.params)
    for moved, old in zip(jax.tree.leaves(change), jax.tree.leaves(before.params), strict=True):
        expected = jnp.where(old == 0.0, jnp.abs(moved), 3e-3)
        np.testing.assert_allclose(jnp.abs(moved), expected, rtol=1e-2)


def test_the_policy_clones_by_the_mean_squared_error_and_has_no_density():
    config = bail.Config(**SMALL)
    learner = bail.make(config, SPEC)
    observation = jnp.array([0.3, -0.2, 0.9])
    data = Dataset.from_arrays(
        {
            "observation": np.tile(observation, (8, 1)),
            "action": np.full((8, 2), 0.5, np.float32),
            "reward": np.zeros(8, np.float32),
            "is_terminal": np.ones(8, bool),
        }
    )
    batch = learner.sample(data, None, jax.random.key(0))
    state = learner.init(jax.random.key(1), batch, Context())
    action = learner.policy.mode(learner.policy_params(state, Context()), observation)
    losses = learner.validate(state, Context(), batch, jax.random.key(2))
    np.testing.assert_allclose(losses["loss/total"], jnp.mean((action - 0.5) ** 2), rtol=1e-5)
    assert learner.policy.log_prob is None
