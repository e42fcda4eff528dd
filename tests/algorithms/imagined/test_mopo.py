"""MOPO and MBPO: what their settings choose."""

import contextlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resident
import transition_rows

from offline_mbrl.algorithms.imagined import mbpo, mopo
from offline_mbrl.data import memory, normalize
from offline_mbrl.learners import sac
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.rollouts import imagination, shares
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.training import fit
from offline_mbrl.types import Context, UsageError

KEY = jax.random.key(0)
SPEC = transition_rows.SPEC
SMALL = {
    "dynamics": gaussian_ensemble.Config(
        num_members=3,
        hidden_layers=(8,),
        decay=(),
        fit=replace(gaussian_ensemble.FIT, num_elites=2),
    ),
    "policy": sac.Config(**transition_rows.SIZES),
    "imagination": ImaginationConfig(num_starts=6, horizon=2, retain=1),
    "termination": "never",
}


def dataset():
    generator = np.random.default_rng(0)
    return memory.Dataset.from_arrays(
        {
            "observation": generator.uniform(-1, 1, (40, 3)),
            "action": generator.uniform(-1, 1, (40, 2)),
            "reward": generator.normal(size=40),
            "is_last": np.arange(40) % 10 == 9,
            "is_terminal": np.zeros(40, bool),
        }
    )


DATA = dataset()


def refreshed(algorithm, **settings):
    """(rows after a refresh, metrics) with a model at its first parameters."""
    config = algorithm.Config(**{**SMALL, **settings})
    learner = algorithm.make(config, SPEC)
    statistics = normalize.full_statistics(DATA)

    @jax.jit
    def run(dataset):
        params = kinds.make(config.dynamics, SPEC).init(KEY, statistics)
        context = Context(statistics=statistics, upstream={"model": params})
        return first_refresh(learner, dataset, context)

    return run(DATA)


def first_refresh(learner, dataset, context):
    """(rows, metrics) of a learner at its first parameters."""
    example = learner.sample(dataset, None, KEY)
    state = learner.init(KEY, example, context)
    cache = learner.init_cache(example)
    _, cache, metrics = learner.refresh(state, context, dataset, cache, jnp.int32(0), KEY)
    return cache.transitions, metrics


def test_without_a_weight_mopo_is_mbpo_and_its_weight_lowers_imagined_rewards_alone():
    plain, _ = refreshed(mbpo, spread="jointly")
    free, _ = refreshed(mopo, penalty_coef=0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, free)
    paid, metrics = refreshed(mopo, penalty_coef=2.0)
    lost = np.asarray(free.reward - paid.reward)
    assert lost.min() > 0
    np.testing.assert_allclose(lost.mean(), 2 * metrics["imagination/penalty"], rtol=1e-4)
    np.testing.assert_allclose(free.next_observation, paid.next_observation, rtol=1e-5)


def spread_of(**settings):
    config = mopo.Config(**{**SMALL, **settings})
    return mopo.spread(config)


def test_members_are_rolled_alone_unless_the_penalty_compares_them():
    assert spread_of(penalty="mixture_std") is shares.jointly
    assert spread_of(penalty_units="standardized") is shares.jointly
    assert spread_of(penalty="own_likelihood") is shares.by_member
    assert spread_of(penalty="nearest_data") is shares.by_member


def test_steps_pay_for_their_distance_from_the_points_of_the_data():
    config = mopo.Config(
        **{**SMALL, "penalty": "nearest_data", "penalty_coef": 0.5, "num_points": 64}
    )
    stage = mopo.pretrain(config, SPEC)["points"]
    statistics = normalize.full_statistics(DATA)
    context = Context(statistics=statistics)
    end = fit.fit(stage.learner, DATA, key=KEY, num_updates=stage.num_updates, context=context)
    points = np.asarray(stage.learner.policy_params(end.state.learner, context))
    rows = np.concatenate([DATA.observation, DATA.action], axis=1)
    assert points.shape == (64, 5)
    assert {tuple(point) for point in points} <= {tuple(row) for row in rows}
    params = kinds.make(config.dynamics, SPEC).init(KEY, statistics)
    learner = mopo.make(config, SPEC)
    context = context._replace(upstream={"model": params, "points": jnp.asarray(points)})
    imagined, metrics = jax.jit(first_refresh, static_argnums=0)(learner, DATA, context)
    free = mopo.make(replace(config, penalty_coef=0.0), SPEC)
    unpaid, _ = jax.jit(first_refresh, static_argnums=0)(free, DATA, context)
    steps = np.concatenate([imagined.observation, imagined.action], axis=1)
    scale = np.append(params.statistics.observation_std, params.statistics.action_std)
    gaps = np.linalg.norm((steps[:, None] - points[None]) / scale, axis=2).min(axis=1)
    np.testing.assert_allclose(unpaid.reward - imagined.reward, 0.5 * gaps, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["imagination/penalty"], gaps.mean(), rtol=1e-3)


def test_a_run_takes_the_memory_that_is_announced():
    rollouts = ImaginationConfig(num_starts=220_000, horizon=4, retain=1, every=1)
    config = mopo.Config(**{**SMALL, "imagination": replace(rollouts, starts_at_once=220_000)})
    statistics = normalize.full_statistics(DATA)
    params = kinds.make(config.dynamics, SPEC).init(KEY, statistics)
    context = Context(statistics=statistics, upstream={"model": params})
    announced, peaks = [], []
    with contextlib.ExitStack() as stack:

        def announce(memory):
            announced.append((memory, resident.now()))
            stack.enter_context(resident.watched(peaks))

        learner = mopo.make(config, SPEC)
        options = {"num_updates": 1, "block_updates": 1, "context": context}
        fit.fit(learner, DATA, key=KEY, announce=announce, **options)
    [(memory, before)] = announced
    row_bytes = 4 * (3 + 2 + 1 + 1 + 3)  # observation, action, reward, discount, next observation
    assert memory.cache == pytest.approx(880_000 * row_bytes, abs=16)
    assert memory.temporary > 1e8
    assert peaks[0] - before == pytest.approx(memory.temporary, rel=0.15)


@pytest.mark.parametrize("kind", ["feedforward", "autoregressive", "coupled"])
def test_another_model_is_one_setting(kind):
    layers = {"hidden_layers": (8,)}
    sizes = {"feedforward": layers, "autoregressive": {"hidden_size": 8}, "coupled": layers}
    dynamics = kinds.KINDS[kind].config(num_members=2, **sizes[kind])
    config = mopo.Config(**{**SMALL, "dynamics": dynamics})
    assert mopo.pretrain(config, SPEC).keys() == {"model"}
    context = Context(
        statistics=normalize.full_statistics(DATA),
        upstream={
            "model": jax.eval_shape(
                kinds.make(dynamics, SPEC).init, KEY, normalize.full_statistics(DATA)
            )
        },
    )
    learner = mopo.make(config, SPEC)
    template = fit.template(learner, DATA, key=KEY, seeds=None, context=context)
    cache = jax.eval_shape(
        learner.refresh, template.learner, context, DATA, template.cache, jnp.int32(0), KEY
    )[1]
    assert cache.transitions.reward.shape == (12,)


@pytest.mark.parametrize(
    ("preset", "horizon", "coef", "task"),
    [
        ("halfcheetah_medium_expert", 5, 5.0, "halfcheetah"),
        ("halfcheetah_medium_expert_paper", 5, 1.0, "halfcheetah"),
        ("walker2d_medium_expert", 1, 2.0, "walker2d"),
        ("kit_hopper_medium_replay", 5, 2.5, "hopper"),
    ],
)
def test_presets_are_those_of_their_data(preset, horizon, coef, task):
    config = mopo.Config(**mopo.PRESETS[preset])
    assert (config.imagination.horizon, config.penalty_coef) == (horizon, coef)
    assert config.termination == f"d4rl_mujoco_{task}"
    is_kit = preset.startswith("kit")
    assert (config.policy.target_entropy, config.policy.max_temperature) == (
        (None, 1.0) if is_kit else (-3.0, None)
    )


def test_an_epoch_of_mbpo_fits_its_cache():
    rollouts = imagination.ImaginationConfig(**vars(mbpo.PRESETS["halfcheetah"]["imagination"]))
    assert (rollouts.every, rollouts.retain * rollouts.num_starts) == (10_000, 400_000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "max"}, "penalty must be one of max_aleatoric"),
        ({"termination": "hoper"}, "no termination rule is known for 'hoper'"),
        (
            {"policy": replace(SMALL["policy"], num_updates=7)},
            r"policy\.num_updates is 7, but it is read only with",
        ),
        (
            {"penalty": "own_likelihood", "penalty_units": "standardized"},
            "read only with a penalty that compares members",
        ),
    ],
)
def test_settings_that_make_no_learner_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        mopo.make(mopo.Config(**{**SMALL, **settings}), SPEC)
