"""The benchmark's arms with models: what they share, what they report, what is claimed of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_policy_benchmark import DATA, ORIGIN, TINY, load, row

from experiments.benchmarks import claims
from experiments.benchmarks.policies import measures, model_claims, presets, report, runs
from experiments.benchmarks.policies.arms import ARMS, NOISY, SWEEP
from experiments.benchmarks.policies.runs import Piece, Setting
from offline_mbrl import environments, registry
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.types import Context, ModelParams, Transition

__all__ = ["load"]  # a fixture

SIZES = {
    "actor_layers": (8,),
    "critic_layers": (8,),
    "num_critics": 2,
    "dynamics.num_members": 2,
    "dynamics.hidden_layers": (8, 8, 8, 8),
    "dynamics.fit.num_elites": 2,
    "dynamics.fit.num_updates": 2,
    "imagination.num_starts": 10,
    "imagination.horizon": 2,
    "num_particles": 2,
    "horizon": 1,
}
SMALL = TINY._replace(arms=("mopo_coef_0", "mopo_coef_5", "cbop"), changes=SIZES)


def scored(arm, seed, score, **figures):
    return row("bc", seed, (score,) * 3)._replace(arm=arm, figures=str(figures).replace("'", '"'))


def three(arm, score, **figures):
    """Seeds whose scores and figures lie close together."""
    return [
        scored(arm, seed, score + 0.01 * seed, **{k: v + 0.01 * seed for k, v in figures.items()})
        for seed in range(3)
    ]


def improving(run):
    """The run with a curve that still rises at its end."""
    return run._replace(curve="0.0 0.1 0.3")


# --- settings ---


def test_settings_of_an_arm_come_last_and_reach_the_part_that_learns_the_policy():
    preset = presets.PRESETS["models"]
    data = preset.datasets[0]
    config = presets.configure(ARMS["mopo_coef_5"], data, preset)
    assert config.penalty_coef == 5.0
    assert config.policy.batch_size == presets.batch_size(config) == preset.batch_size
    assert config.policy.target_entropy == -1.0
    assert config.policy.actor_layers == (64, 64)
    assert presets.configure(ARMS["cbop_noise_0.3"], data, preset).model_noise == 0.3


def test_arms_of_a_study_differ_in_what_is_studied_alone():
    preset = presets.PRESETS["models"]
    data = preset.datasets[0]
    sweep = [presets.configure(ARMS[arm], data, preset) for arm in SWEEP]
    assert len({repr(config) for config in sweep}) == len(sweep)
    assert len({repr(config.dynamics) for config in sweep}) == 1
    expanded = [presets.configure(ARMS[arm], data, preset) for arm in (*NOISY, "mve", "lcb")]
    assert {repr(config.dynamics) for config in expanded} == {repr(sweep[0].dynamics)}


# --- runs ---


def test_settings_with_the_same_model_fit_it_once_and_report_figures(tmp_path, load):
    place = runs.Place(tmp_path, models={})
    tables = {}
    for arm in SMALL.arms:
        piece = Piece(Setting(arm, DATA.name), (0, 1))
        tables[arm] = runs.run(piece, DATA, SMALL, load, ORIGIN, place)
    assert len(place.models) == 1
    alone = runs.run(
        Piece(Setting("mopo_coef_5", DATA.name), (0, 1)),
        DATA,
        SMALL,
        load,
        ORIGIN,
        runs.Place(tmp_path),
    )
    assert [own.curve for own in alone] == [own.curve for own in tables["mopo_coef_5"]]
    assert [own.figures for own in alone] == [own.figures for own in tables["mopo_coef_5"]]
    reported = runs.measures_of(tables["cbop"][0])
    assert 0 <= reported["expansion/expected_horizon"] <= 1
    assert np.isfinite(reported["value_gap"])
    page = report.write(tmp_path, SMALL, [own for rows in tables.values() for own in rows], "x")
    assert "value_gap" in page.read_text()


# --- what is reported ---


def test_soft_returns_are_the_sums_of_first_episodes():
    reward = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    log_prob = np.array([[9.0, 9.0], [-1.0, -1.0], [-3.0, -3.0]])
    is_last = np.array([[False, False], [True, False], [False, False]])
    returns = measures.soft_returns(reward, log_prob, is_last, gamma=0.5, temperature=0.1)
    first = 1.0 + 0.5 * (2.0 + 0.1)
    np.testing.assert_allclose(returns, [first, first + 0.25 * (4.0 + 0.3)])


def test_the_value_gap_is_the_constant_by_which_values_are_too_high():
    """Critics that say 7 everywhere, where no reward and no entropy count."""
    simulator = "gym/Pendulum-v1"
    spec = environments.spec(simulator)
    config = sac.Config(actor_layers=(4,), critic_layers=(4,), gamma=0.0)
    networks = sac.networks(config, spec)
    critic = jax.tree.map(jnp.zeros_like, networks.init_critics(jax.random.key(0)))
    state = actor_critic.State(
        actor=networks.init_actor(jax.random.key(1)),
        target_actor=None,
        critic=critic,
        target_critic=critic,
        log_temperature=jnp.float32(0.0),
        actor_opt_state=(),
        critic_opt_state=(),
        temperature_opt_state=(),
        num_updates=jnp.int32(0),
    )
    gap = measures.value_gap(config, spec, state, simulator, seed=0)
    lifted = state._replace(critic=jax.tree.map(lambda leaf: leaf, critic))
    again = measures.value_gap(config, spec, lifted, simulator, seed=0)
    assert gap == again  # depends on the seed alone
    assert 0.5 < gap < 16.3  # the first reward lies within -16.3 and 0, and values are 0


@pytest.mark.parametrize("arm", ["sac", "mopo_coef_1", "morel", "mobile", "rambo", "cbop"])
def test_the_critics_of_every_arm_that_estimates_soft_values_are_reached(arm):
    """RAMBO's are not the whole of its state."""
    config = presets.configure(ARMS[arm], DATA, presets.PRESETS["models"])
    assert measures.with_soft_values(config) is not None
    learner = registry.lookup(ARMS[arm].algorithm).make(config, presets.CONTINUOUS)
    params = ModelParams(network={"weight": jnp.zeros(2)}, statistics=None, elites=None)
    context = Context(statistics=None, upstream={"model": params})
    step = jnp.zeros(1)
    example = Transition(
        observation=step,
        action=step,
        reward=step[0],
        discount=step[0],
        next_observation=step,
    )
    state = jax.eval_shape(lambda key: learner.init(key, example, context), jax.random.key(0))
    critics = measures.critics_of(state)
    assert isinstance(critics, actor_critic.State)
    assert jax.tree.leaves(critics.critic)


def test_a_state_without_critics_has_no_value_gap():
    assert measures.critics_of({"policy": 1.0}) is None


def test_a_seeds_figures_are_means_of_the_last_third_of_the_blocks_that_have_them():
    history = [{"q": [float(block), 0.0]} for block in range(6)] + [{"gap": [3.0, 4.0]}]
    assert measures.of_seed(history, 0) == {"gap": 3.0, "q": 4.5}


# --- claims ---


def test_a_penalty_helps_in_between_of_none_and_too_much():
    scores = dict(zip(SWEEP, (0.2, 0.3, 0.8, 0.5, 0.1), strict=True))
    inner = {arm: three(arm, score) for arm, score in scores.items()}
    assert model_claims.interior_optimum([*SWEEP], inner).verdict == claims.HOLDS
    ends = {arm: three(arm, 1 - score) for arm, score in scores.items()}
    assert model_claims.interior_optimum([*SWEEP], ends).verdict == claims.FAILS
    few = {arm: own[:1] for arm, own in inner.items()}
    assert model_claims.interior_optimum([*SWEEP], few).verdict == claims.MISSING


def test_noise_shortens_the_expected_horizon_and_caution_lowers_values():
    horizons = dict(zip(NOISY, (2.0, 1.5, 1.0, 0.5), strict=True))
    own = {
        arm: three(arm, 0.5, **{"expansion/expected_horizon": horizon, "value_gap": -1.0})
        for arm, horizon in horizons.items()
    }
    own["cbop_psi_0"] = three("cbop_psi_0", 0.5, value_gap=2.0)
    judged = model_claims.of_dataset(own)
    assert len(judged) == len(NOISY) - 1 + 2
    assert {claim.verdict for claim in judged} == {claims.HOLDS}
    own["cbop"] = three("cbop", 0.5, **{"expansion/expected_horizon": 0.1, "value_gap": 1.0})
    failing = {
        claim.statement for claim in model_claims.of_dataset(own) if claim.verdict == claims.FAILS
    }
    assert len(failing) == 2


@pytest.mark.parametrize("better", ["mopo_coef_1", "mopo_coef_0"])
def test_scores_are_compared_by_the_whole_interval(better):
    worse = {"mopo_coef_1": "mopo_coef_0", "mopo_coef_0": "sac"}[better]
    own = {better: three(better, 0.8), worse: three(worse, 0.2)}
    (claim,) = model_claims.of_dataset(own)
    assert claim.verdict == claims.HOLDS
    (claim,) = model_claims.of_dataset({better: own[worse], worse: own[better]})
    assert claim.verdict == claims.FAILS


def test_nothing_is_settled_against_an_arm_that_still_improves():
    rising = [
        row("bc", seed, (0.0, 0.1 + 0.01 * seed, 0.3))._replace(arm="sac") for seed in range(3)
    ]
    own = {"mopo_coef_0": three("mopo_coef_0", 0.9), "sac": rising}
    (claim,) = model_claims.of_dataset(own)
    assert claim.measured.low > 0
    assert (claim.verdict, claim.reason) == (claims.UNSETTLED, "sac still rising at the end")


@pytest.mark.parametrize("arm", ["cbop", "cbop_noise_0.1"])
def test_no_expected_horizon_is_settled_while_a_score_still_rises(arm):
    horizons = {"cbop": 2.0, "cbop_noise_0.1": 1.0}
    own = {
        name: three(name, 0.5, **{"expansion/expected_horizon": horizon})
        for name, horizon in horizons.items()
    }
    (claim,) = model_claims.of_dataset(own)
    assert (claim.verdict, claim.reason) == (claims.HOLDS, "")
    own[arm] = [improving(part) for part in own[arm]]
    (again,) = model_claims.of_dataset(own)
    assert again.measured == claim.measured
    assert (again.verdict, again.reason) == (claims.UNSETTLED, f"{arm} still rising at the end")


@pytest.mark.parametrize(("gap", "below"), [(2.0, False), (-2.0, True), (2.0, True)])
def test_no_value_gap_is_settled_while_a_score_still_rises(gap, below):
    runs_ = three("cbop", 0.5, value_gap=gap)
    claim = model_claims.gap_above_zero("cbop", runs_, below=below)
    assert claim.verdict == (claims.HOLDS if (gap < 0) == below else claims.FAILS)
    again = model_claims.gap_above_zero("cbop", [improving(part) for part in runs_], below=below)
    assert (again.verdict, again.reason) == (claims.UNSETTLED, "cbop still rising at the end")
    few = [improving(part) for part in runs_[:1]]
    assert model_claims.gap_above_zero("cbop", few).verdict == claims.MISSING
