"""What decides when a fit ends, what it holds out and what its scores count."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import D, density, ensemble, linear, spec, transition

from offline_mbrl.data import splits
from offline_mbrl.models import explicit, fitting, scores
from offline_mbrl.training import fit, stages
from offline_mbrl.types import Context, UsageError

MEMBERS = 3
KEY = jax.random.key(0)
CONFIG = fitting.Config(
    num_updates=600, batch_size=64, refresh_every=20, learning_rate=0.0, patience=3
)
SCORES = (scores.median_nll(), scores.squared_error())


def small():
    return explicit.make(density((4,)), spec(), num_members=MEMBERS)


def run(config, *, score=SCORES[0], **settings):
    dataset, statistics, _ = linear()
    return fit.fit(
        fitting.make(small(), config, num_members=MEMBERS, score=score),
        dataset,
        key=KEY,
        num_updates=config.num_updates,
        context=Context(statistics=statistics),
        block_updates=50,
        hooks=fitting.hooks(config),
        **settings,
    )


# --- the end ---


@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_a_run_ends_early_when_its_patience_does(seeds):
    # Nothing is learned, so only the first evaluation, after 20 updates, improves on none.
    stopped = run(CONFIG, seeds=seeds)
    assert "no held-out score improved in 3 evaluations" in stopped.stopped
    assert stopped.num_updates == 100  # the third in vain comes after 80, before a block of 20 more
    assert np.all(stopped.state.learner.done)
    assert np.all(stopped.state.learner.count == 80)  # a seed that is done is not updated
    whole = run(dataclasses.replace(CONFIG, patience=0), seeds=seeds)
    assert (whole.stopped, whole.num_updates) == (None, 600)
    assert not np.any(whole.state.learner.done)


def test_patience_may_be_counted_in_epochs():
    size = len(linear()[0].starts)  # 4,800 transitions, 75 updates of 64
    config = dataclasses.replace(CONFIG, patience=2, patience_unit="epochs")
    stopped = run(config)
    assert "no held-out score improved in 2 epochs" in stopped.stopped
    evaluations = -(-2 * size // (64 * 20))
    assert int(stopped.state.learner.count) == 20 * (1 + evaluations)


def test_a_run_stops_when_every_living_seed_is_done():
    hook = fitting.stop_when_done("3 evaluations")

    def progress(done, alive):
        learner = SimpleNamespace(done=jnp.array(done))
        return SimpleNamespace(state=SimpleNamespace(learner=learner, alive=jnp.array(alive)))

    assert hook(progress([True, True], [True, True]))
    assert hook(progress([True, False], [True, True])) is None
    assert hook(progress([True, False], [True, False]))  # the other seed is frozen
    assert hook(progress([True, True], [False, False])) is None  # all failed: no end by this rule
    assert hook(progress(False, True)) is None
    assert hook(progress(True, True))


def marks(network):
    """[E] a number of each member that differs between seeds and hardly changes in a fit."""
    return jnp.sum(network["members"]["layer_0"]["kernel"], axis=(1, 2))


def improves_above(threshold):
    """A score under which a seed is done unless the mark of one of its members is greater."""

    def evaluate(model, params, transitions):
        return marks(params.network)

    def improved(score, best):
        return (score > threshold) | jnp.isinf(best)

    return scores.Score(evaluate=evaluate, improved=improved)


def test_a_seed_beside_others_ends_as_the_same_seed_alone():
    config = dataclasses.replace(CONFIG, learning_rate=1e-4, num_updates=200)
    initial = run(dataclasses.replace(config, num_updates=1), seeds=[0, 1]).state.learner
    largest = np.asarray(jnp.max(jax.vmap(marks)(initial.params), axis=1))
    assert abs(largest[0] - largest[1]) > 0.5
    score = improves_above(largest.mean())
    early = int(np.argmin(largest))  # the seed that is done first
    both = run(config, seeds=[0, 1], score=score)
    alone = run(config, seeds=[early], score=score)
    assert (both.num_updates, alone.num_updates) == (200, 100)
    np.testing.assert_array_equal(
        both.state.learner.count, np.where(np.arange(2) == early, 80, 200)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[early], b[0], rtol=1e-4, atol=1e-6),
        both.state.learner,
        alone.state.learner,
    )


# --- stages ---


def test_a_stage_holds_out_as_the_config_says_and_ends_by_its_own_rule():
    dataset, _, _ = linear()
    whole = dataset._replace(starts=np.concatenate([dataset.starts, dataset.held_out]), held_out=())
    stage = fitting.stage(small(), CONFIG, num_members=MEMBERS)
    ended = stages.train_stages(
        {"model": stage},
        whole,
        key=KEY,
        run_stage=stages.plain(seeds=[0, 1], block_updates=50),
    )
    assert ended.end.stopped is None  # an early stop is a finished stage
    assert int(ended.end.state.step) == 100
    params = ended.upstream["model"]
    assert params.elites.shape == (2, MEMBERS)
    prepared = stage.prepare(whole)
    rows = prepared.observation[prepared.starts]
    assert len(prepared.held_out) == int(0.1 * len(whole.starts))
    np.testing.assert_allclose(params.statistics.observation_mean[0], rows.mean(axis=0), rtol=1e-4)


def test_the_split_is_as_large_as_the_config_says():
    dataset = linear()[0]._replace(held_out=())
    size = len(dataset.starts)
    for most, expected in ((0, int(0.2 * size)), (100, 100)):
        config = dataclasses.replace(CONFIG, held_out_fraction=0.2, max_held_out=most)
        split = fitting.stage(small(), config, num_members=MEMBERS).prepare(dataset)
        assert (len(split.held_out), len(split.starts)) == (expected, size - expected)
        assert len(fitting.held_out(split, most).reward) == expected
        same = splits.hold_out(dataset, fraction=0.2, most=most or None)
        np.testing.assert_array_equal(split.held_out, same.held_out)


# --- what scores count ---


def blind(rows, num):
    """The same, the first `num` terminal and of unknown outcome."""
    copies = rows.next_observation.at[:num].set(rows.observation[:num])
    return rows._replace(discount=rows.discount.at[:num].set(0.0), next_observation=copies)


def evaluation(score, model, params):
    return jax.jit(lambda rows: score.evaluate(model, params, rows))


@pytest.mark.parametrize("score", SCORES)
def test_of_an_unknown_outcome_the_reward_alone_is_judged(score):
    model, params = ensemble()
    rows = transition(lead=(9,))
    evaluate = evaluation(score, model, params)
    assert np.all(evaluate(blind(rows, 4)) != evaluate(rows))
    other = rows._replace(reward=rows.reward.at[:4].add(3.0))
    assert np.all(evaluate(blind(rows, 4)) != evaluate(blind(other, 4)))


def test_the_median_is_over_means_of_the_judged_entries_and_nan_for_a_member_that_failed():
    model, params = ensemble()
    rows = transition(lead=(9,))
    log_probs = jax.jit(lambda rows: scores.log_probs(model, params, rows))(blind(rows, 4))
    log_prob = np.asarray(log_probs)
    nll = np.where(np.arange(9)[:, None] < 4, -log_prob[..., -1], -log_prob.mean(axis=2))
    evaluate = evaluation(scores.median_nll(), model, params)
    np.testing.assert_allclose(evaluate(blind(rows, 4)), np.median(nll, axis=0), rtol=1e-5)
    broken = rows._replace(observation=rows.observation.at[8].set(jnp.nan))
    np.testing.assert_array_equal(evaluate(blind(broken, 4)), np.nan)


@pytest.mark.parametrize("score", SCORES)
def test_a_transition_of_which_nothing_varies_or_is_observed_counts_in_no_score(score):
    model, params = ensemble(constant=(D - 1,))
    rows = transition(lead=(9,))
    rest = jax.tree.map(lambda leaf: leaf[4:] if isinstance(leaf, jax.Array) else leaf, rows)
    evaluate = evaluation(score, model, params)
    np.testing.assert_allclose(evaluate(blind(rows, 4)), evaluate(rest), rtol=1e-5)
    np.testing.assert_array_equal(evaluate(blind(rows, 9)), 0.0)


def test_another_number_of_members_than_the_models_is_refused():
    model = explicit.make(density((4,)), spec(), num_members=2)
    learner = fitting.make(model, CONFIG, num_members=3)
    with pytest.raises(UsageError, match="num_members is 3, but the model has 2"):
        learner.init(KEY, (), Context(statistics=linear()[1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_elites": 4},
        {"num_elites": -1},
        {"refresh_every": 0},
        {"batch_size": 0},
        {"patience": -1},
        {"patience_unit": "updates"},
        {"max_held_out": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    config = dataclasses.replace(CONFIG, **wrong)
    with pytest.raises(UsageError, match="fitting"):
        fitting.make(small(), config, num_members=MEMBERS)
