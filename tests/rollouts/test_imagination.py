"""Imagined rows beside the data: which ones, how many, and for every learner."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear
import transition_rows
from linear_learner import make as without_policy

from offline_mbrl.data import memory, normalize, ring
from offline_mbrl.learners import cql, edac, iql, rebrac, sac, td3_bc
from offline_mbrl.rollouts import adjust, imagination, shares, unroll
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.training import fit
from offline_mbrl.types import Context, DiscreteActions, Learner, UsageError

KEY = jax.random.key(0)
SPEC = transition_rows.SPEC
MODEL = linear.model()
PARAMS = linear.params(3)
SMALL = ImaginationConfig(num_starts=8, horizon=3, every=4, retain=2, real_fraction=0.25)


def dataset(num_steps=60, episode=6):
    generator = np.random.default_rng(0)
    return memory.Dataset.from_arrays(
        {
            "observation": generator.uniform(-1, 1, (num_steps, 3)),
            "action": generator.uniform(-1, 1, (num_steps, 2)),
            "reward": np.arange(1.0, num_steps + 1) / num_steps,
            "is_terminal": np.arange(num_steps) % episode == episode - 1,
        }
    )


DATA = dataset()
CONTEXT = Context(statistics=normalize.statistics(DATA), upstream={"model": PARAMS})


def constant_learner(batch_size=16):
    """Nothing is learned; its policy is linear."""

    def step(state, context, batch, key):
        return state, {"loss/total": jnp.mean(batch.reward)}

    return Learner(
        sample=memory.Transitions(batch_size),
        init=lambda key, example, context: linear.policy_params(),
        step=step,
        policy=linear.policy(),
        policy_params=lambda state, context: state,
    )


def rollouts(**settings):
    return imagination.by_rollout(MODEL, linear.policy(), horizon=3, **settings)


def after_refreshes(learner, count=1):
    """(state, cache, metrics of the last one)."""
    example = learner.sample(DATA, None, KEY)
    state = learner.init(KEY, example, CONTEXT)
    cache = learner.init_cache(example)
    metrics = {}
    refresh = jax.jit(learner.refresh)
    for number in range(count):
        key = jax.random.fold_in(KEY, number)
        state, cache, metrics = refresh(state, CONTEXT, DATA, cache, jnp.int32(0), key)
    return state, cache, metrics


def imagined(config=SMALL, learner=None, starts=None, **settings):
    learner = learner or constant_learner()
    return imagination.with_imagination(learner, rollouts(**settings), config, starts=starts)


def drawn(learner, cache):
    return jax.jit(learner.sample)(DATA, cache, KEY)


def rolled(imagine, starts, context=CONTEXT, key=KEY):
    return jax.jit(imagine)(context, linear.policy_params(), starts, jnp.int32(0), key)


# --- batches ---


@pytest.mark.parametrize(
    ("batch_size", "fraction", "num_real"), [(256, 0.05, 12), (256, 0.5, 128), (100, 0.3, 30)]
)
def test_a_batch_is_its_share_of_real_rows_then_imagined_ones(batch_size, fraction, num_real):
    learner = imagined(replace(SMALL, real_fraction=fraction), constant_learner(batch_size))
    _, cache, _ = after_refreshes(learner)
    batch = drawn(learner, cache)
    expected = (np.arange(batch_size) >= num_real).astype(np.float32)
    np.testing.assert_array_equal(batch.extras["is_imagined"], expected)
    in_data = np.isin(np.asarray(batch.reward), np.asarray(DATA.reward))
    np.testing.assert_array_equal(in_data, expected == 0)
    in_cache = np.isin(np.asarray(batch.reward), np.asarray(cache.transitions.reward))
    np.testing.assert_array_equal(in_cache, expected == 1)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_share_of_real_rows_may_be_none_or_all(fraction):
    learner = imagined(replace(SMALL, real_fraction=fraction))
    batch = drawn(learner, after_refreshes(learner)[1])
    np.testing.assert_array_equal(batch.extras["is_imagined"], 1 - fraction)


def test_without_a_cache_batches_are_real_and_the_learners_own():
    learner = imagined()
    batch = learner.sample(DATA, None, KEY)
    own = constant_learner().sample(DATA, None, KEY)
    jax.tree.map(np.testing.assert_array_equal, own, batch._replace(extras=own.extras))
    np.testing.assert_array_equal(batch.extras["is_imagined"], 0)


def test_where_every_rollout_diverges_real_rows_take_the_place_of_imagined_ones():
    def broken(params, state, action, key):
        state, prediction = MODEL.step(params, state, action, key)
        return state, prediction._replace(reward=jnp.array(jnp.inf))

    model = MODEL._replace(step=broken)
    imagine = imagination.by_rollout(model, linear.policy(), horizon=3)
    learner = imagination.with_imagination(constant_learner(), imagine, SMALL)
    _, cache, metrics = after_refreshes(learner)
    assert (metrics["imagination/stored"], metrics["imagination/diverged"]) == (0, 1)
    batch = drawn(learner, cache)
    np.testing.assert_array_equal(batch.extras["is_imagined"], 0)
    assert np.isin(np.asarray(batch.reward), np.asarray(DATA.reward)).all()


# --- rows ---


def test_the_cache_holds_the_steps_of_the_last_rollouts_and_nothing_else():
    learner = imagined()
    _, cache, metrics = after_refreshes(learner, 5)
    rewards = []
    for number in (3, 4):  # the last two
        key_starts, key_rollouts = jax.random.split(jax.random.fold_in(KEY, number))
        starts = imagination.uniform_starts(DATA, 8, key_starts)
        paths = rolled(rollouts(), starts, key=key_rollouts)
        rewards += paths.reward.ravel().tolist()
    assert ring.capacity(cache) == ring.size(cache) == 2 * 3 * 8 == metrics["imagination/stored"]
    np.testing.assert_allclose(sorted(cache.transitions.reward), sorted(rewards), rtol=1e-5)


def test_rows_lead_from_each_observation_to_the_next():
    quiet = linear.params(noise=0.0)
    starts = jnp.tile(jnp.arange(1.0, 5.0)[:, None], (1, 3))
    context = CONTEXT._replace(upstream={"model": quiet})
    trajectory = jax.device_get(rolled(rollouts(), starts, context))
    rows, valid = jax.device_get(imagination.transitions(trajectory))
    assert rows.reward.shape == (12,)
    assert valid.all()
    np.testing.assert_array_equal(rows.observation[:4], trajectory.observation[:, 0])
    np.testing.assert_array_equal(rows.observation[4:], rows.next_observation[:8])
    member = jax.device_get(linear.take(quiet.network["members"], 0))
    following = rows.observation @ member["A"].T + rows.action @ member["B"].T
    np.testing.assert_allclose(rows.next_observation, following, rtol=1e-4, atol=1e-5)


def test_rollouts_that_always_terminate_store_one_row_a_start():
    def always(observation, action, next_observation):
        return jnp.ones((), bool)

    learner = imagined(adjust=lambda context: adjust.terminate(always))
    _, cache, metrics = after_refreshes(learner, 2)
    assert ring.size(cache) == 16
    np.testing.assert_array_equal(cache.transitions.discount[:16], 0)
    assert jnp.all(cache.transitions.reward[:16] != 0)
    assert (metrics["imagination/length"], metrics["imagination/terminals"]) == (1, 1)
    assert np.all(drawn(learner, cache).reward != 0)


def test_adjustments_read_what_earlier_stages_hand_on():
    def adjusted(context):
        lost = context.upstream["lost"]

        def apply(params, observation, action, prediction, key):
            return prediction._replace(reward=prediction.reward - lost)

        return adjust.Adjust(apply=apply, changes_observation=False)

    context = CONTEXT._replace(upstream={"model": PARAMS, "lost": jnp.array(2.0)})
    plain = rolled(rollouts(), jnp.ones((4, 3)), context)
    lower = rolled(rollouts(adjust=adjusted), jnp.ones((4, 3)), context)
    np.testing.assert_allclose(lower.reward, plain.reward - 2, rtol=1e-5, atol=1e-5)


def test_measures_are_reported_as_means_over_steps_that_happened():
    def measured(params, observation, action, prediction):
        return {"four": jnp.array(4.0)}

    learner = imagined(
        measure=lambda context: unroll.Measure(apply=measured),
        adjust=lambda context: adjust.terminate(lambda s, a, n: s[0] > 0),
    )
    metrics = after_refreshes(learner)[2]
    assert metrics["imagination/four"] == 4
    assert 1 < metrics["imagination/length"] < 3


@pytest.mark.parametrize(("spread", "num_members"), [(shares.by_member, 1), (shares.jointly, 3)])
def test_members_share_a_rollout_or_have_starts_of_their_own(spread, num_members):
    sizes = []

    def step(params, state, action, key):
        sizes.append(params.elites.shape[0])
        return MODEL.step(params, state, action, key)

    model = MODEL._replace(step=step)
    imagine = imagination.by_rollout(model, linear.policy(), horizon=2, spread=spread)
    paths = rolled(imagine, jnp.ones((7, 3)))  # no multiple of the members
    assert paths.reward.shape == (7, 2)
    assert set(sizes) == {num_members}


@pytest.mark.parametrize("starts_at_once", [3, 4, 7])
def test_rollouts_in_parts_are_those_of_all_starts_in_order(starts_at_once):
    quiet = CONTEXT._replace(upstream={"model": linear.params(noise=0.0)})
    still = {**linear.policy_params(), "std": jnp.array(0.0)}
    starts = jnp.tile(jnp.arange(7.0)[:, None] / 7, (1, 3))
    arguments = (quiet, still, starts, jnp.int32(0), KEY)
    whole = jax.jit(rollouts())(*arguments)
    parts = jax.jit(imagination.in_parts(rollouts(), starts_at_once))(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)


def test_parts_have_noise_of_their_own():
    starts = jnp.zeros((6, 3))
    paths = rolled(imagination.in_parts(rollouts(), 2), starts)
    assert len(np.unique(paths.reward[:, 0])) == 6


# --- starts and actions ---


def many_starts(draw, count):
    return jax.jit(draw, static_argnums=1)(DATA, count, KEY)


def test_starts_are_observations_of_transitions_all_alike():
    counts = occurrences(many_starts(imagination.uniform_starts, 30_000))
    assert counts.sum() == 30_000
    expected = 30_000 / len(DATA.starts)
    assert np.abs(counts - expected).max() < 6 * expected**0.5


def occurrences(observations):
    """How often the observation of each transition occurs, `[N]`."""
    values, counts = np.unique(np.asarray(observations)[:, 0], return_counts=True)
    table = dict(zip(values.tolist(), counts.tolist(), strict=True))
    column = np.asarray(DATA.observation)[DATA.starts, 0]
    return np.array([table.get(value, 0) for value in column.tolist()])


def test_initial_starts_are_the_first_records_of_episodes():
    firsts = np.append(True, np.diff(DATA.episode_end) != 0)[DATA.starts]
    counts = occurrences(many_starts(imagination.initial_starts, 2_000))
    np.testing.assert_array_equal(counts > 0, firsts)
    assert counts.sum() == 2_000
    cache = after_refreshes(imagined(replace(SMALL, starts="initial")))[1]
    assert occurrences(cache.transitions.observation[:8])[firsts].sum() == 8


def test_weighted_starts_follow_their_weights():
    weights = np.zeros(len(DATA.starts), np.float32)
    weights[[3, 10]] = [1.0, 3.0]
    draw = imagination.weighted_starts(lambda data: jnp.asarray(weights))
    counts = occurrences(many_starts(draw, 4_000))
    assert counts[[3, 10]].sum() == 4_000
    assert abs(counts[10] - 3_000) < 6 * 750**0.5
    cache = after_refreshes(imagined(starts=draw))[1]
    assert occurrences(cache.transitions.observation[:8])[[3, 10]].sum() == 8


def test_actions_are_the_policys_or_uniform():
    learner = constant_learner()
    assert imagination.acting(SMALL, learner, SPEC) is learner.policy
    policy = imagination.acting(replace(SMALL, actions="uniform"), learner, SPEC)
    keys = jax.random.split(KEY, 3_000)
    actions = np.asarray(jax.vmap(policy.sample, (None, None, 0))(None, jnp.zeros(3), keys))
    assert actions.shape == (3_000, 2)
    np.testing.assert_allclose(np.mean(actions, axis=0), 0, atol=0.06)
    np.testing.assert_allclose(np.var(actions, axis=0), 1 / 3, atol=0.03)
    discrete = imagination.uniform_policy(SPEC.__class__(SPEC.observation, DiscreteActions(3)))
    actions = jax.vmap(discrete.sample, (None, None, 0))(None, jnp.zeros(3), keys)
    assert np.bincount(actions).min() > 800


# --- any learner ---

LEARNERS = {
    "sac": (sac.Config, sac.make),
    "cql": (cql.Config, cql.make),  # standardizes observations
    "td3_bc": (td3_bc.Config, td3_bc.make),
    "iql": (iql.Config, iql.make),
    "rebrac": (rebrac.Config, rebrac.make),  # reads the next action
    "edac": (edac.Config, edac.make),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_any_learner_of_transitions_learns_from_imagined_rows(name):
    config, make = LEARNERS[name]
    own = make(config(**transition_rows.SIZES), SPEC)
    imagine = imagination.by_rollout(MODEL, own.policy, horizon=3)
    learner = imagination.with_imagination(own, imagine, SMALL)
    template = fit.template(learner, DATA, key=KEY, seeds=None, context=CONTEXT)
    refreshed = jax.eval_shape(
        learner.refresh, template.learner, CONTEXT, DATA, template.cache, jnp.int32(0), KEY
    )
    batch = jax.eval_shape(learner.sample, DATA, refreshed[1], KEY)
    after, _ = jax.eval_shape(learner.step, template.learner, CONTEXT, batch, KEY)
    assert shapes(after) == shapes(template.learner)
    assert shapes(refreshed[:2]) == shapes((template.learner, template.cache))


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_no_logged_action_follows_an_imagined_step():
    own = constant_learner()._replace(sample=memory.Transitions(16, with_next_action=True))
    learner = imagined(learner=own)
    batch = drawn(learner, after_refreshes(learner)[1])
    assert batch.extras.keys() == {"next_action", "has_next_action", "is_imagined"}
    np.testing.assert_array_equal(batch.extras["has_next_action"][4:], 0)
    real = own.sample(DATA, None, KEY)
    np.testing.assert_array_equal(batch.extras["next_action"][:4], real.extras["next_action"][:4])


def test_a_fit_refreshes_at_its_updates_and_resumes_bit_for_bit():
    refreshes = []
    saved = {}

    def keep(progress):
        refreshes.append("imagination/reward" in progress.metrics)
        saved[progress.step] = jax.device_get(progress.state)

    settings = {"key": KEY, "num_updates": 8, "block_updates": 3, "context": CONTEXT}
    whole = fit.fit(imagined(), DATA, hooks=[keep], **settings)
    assert list(saved) == [3, 4, 6, 8]
    assert refreshes == [True, False, True, False]
    resumed = fit.fit(imagined(), DATA, start=saved[3], **settings)
    jax.tree.map(np.testing.assert_array_equal, resumed.state.cache, whole.state.cache)


def test_the_memory_of_the_cache_is_known_before_a_run():
    template = fit.template(imagined(), DATA, key=KEY, seeds=None, context=CONTEXT)
    assert fit.cache_bytes(template) == 48 * 4 * (3 + 2 + 1 + 1 + 3) + 4


# --- refusals ---


def test_learners_without_a_policy_or_with_a_refresh_of_their_own_are_refused():
    with pytest.raises(UsageError, match="no policy"):
        imagined(learner=without_policy(batch_size=8)._replace(policy=None))
    with pytest.raises(UsageError, match="refresh of its own"):
        imagined(learner=constant_learner()._replace(refresh_every=3))
