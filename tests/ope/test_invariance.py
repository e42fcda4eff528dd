"""What an estimate owes to units: rewards that are shifted or negated shift and negate it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_models as linear
from learned_examples import GAMMA, chain, context, single
from logged_examples import batch_of, blended, robust

from offline_mbrl.ope import model_based, support
from offline_mbrl.ope.ratios import dice, vpm
from offline_mbrl.ope.values import fqe, fqe_distributional
from offline_mbrl.rollouts import adjust
from offline_mbrl.selection.weighting import WEIGHTINGS

SHIFT = 7.0
STEPS = 10
HORIZON = (1 - 0.9**STEPS) / (1 - 0.9)  # sum of gamma^t


def close(value, wanted, **tolerance):
    np.testing.assert_allclose(value, wanted, **{"rtol": 1e-4, "atol": 1e-4} | tolerance)


# --- weights ---


@functools.cache
def weighted(spread):
    """Estimates by form, of rewards as they are, shifted and negated; log ratios `[200, 10]`."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(200, STEPS))
    log_ratios = spread * rng.normal(size=reward.shape) - spread**2 / 2
    forms = jax.jit(
        lambda batch: {
            name: form(batch, log_ratios, gamma=0.9) for name, form in WEIGHTINGS.items()
        }
    )
    return tuple(forms(batch_of(rows)) for rows in (reward, reward + SHIFT, -reward))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_negated_rewards_negate_the_estimates_of_weights(name, spread):
    plain, _, negated = (estimates[name] for estimates in weighted(spread))
    close(negated.value, -plain.value)
    close(negated.stderr, plain.stderr)


@pytest.mark.parametrize("name", ["weighted", "weighted_per_decision", "clipped_per_decision"])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_shifted_rewards_shift_the_estimates_of_normalized_weights(name, spread):
    plain, shifted, _ = (estimates[name] for estimates in weighted(spread))
    close(shifted.value - plain.value, SHIFT * HORIZON)
    close(shifted.diagnostics["weight_error"], 0.0)


@pytest.mark.parametrize("name", ["ordinary", "per_decision"])
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_weights_that_are_not_normalized_count_a_shift_by_their_mean(name, spread):
    plain, shifted, _ = (estimates[name] for estimates in weighted(spread))
    counted = (shifted.value - plain.value) / (SHIFT * HORIZON)
    close(plain.diagnostics["weight_error"], abs(counted - 1.0), atol=1e-3)
    assert plain.diagnostics["weight_error"] > 1e-3


@pytest.mark.parametrize(("name", "is_low"), [("per_decision", 1), ("weighted_per_decision", 0)])
def test_a_mean_weight_that_chance_has_led_far_from_one_is_low_support(name, is_low):
    """Twelve of sixty episodes weigh 2.5, the others 0.95: by chance, as far as they can tell."""
    log_ratios = np.zeros((60, STEPS))
    log_ratios[:, 0] = np.log(np.where(np.arange(60) % 5 == 0, 2.5, 0.95))
    reward = np.random.default_rng(0).normal(size=log_ratios.shape)
    form = functools.partial(WEIGHTINGS[name], batch_of(reward), log_ratios, gamma=0.9)
    estimate = form()
    close(estimate.diagnostics["weight_error"], 0.26 * is_low)
    assert estimate.diagnostics["low_support"] == is_low
    lenient = form(limits=support.Limits(weight_error=1.0))
    assert lenient.diagnostics["low_support"] == 0


def test_doubly_robust_estimates_shift_and_negate_with_their_values():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(200, STEPS)).astype(np.float32)
    q = rng.normal(size=reward.shape).astype(np.float32)
    v = rng.normal(size=(200, STEPS + 1)).astype(np.float32)
    v[:, -1] = 0.0
    log_ratios = rng.normal(size=reward.shape).astype(np.float32) - 0.5
    left = (1 - 0.9 ** (STEPS - np.arange(STEPS + 1))) / (1 - 0.9)  # sum of gamma^k that is to come
    changes = {
        "plain": (reward, q, v),
        "shifted": (reward + SHIFT, q + SHIFT * left[:-1], v + SHIFT * left),
        "negated": (-reward, -q, -v),
    }
    values = {}
    for change, (rewards, *of_values) in changes.items():
        logged = (batch_of(rewards), log_ratios, *np.float32(of_values[0])[None], of_values[1])
        forms = robust(*logged) | {"magic": blended(*logged, (0, 1, 3))}
        values[change] = np.array([form.value for form in forms.values()])
    close(values["shifted"], values["plain"] + SHIFT * HORIZON, rtol=1e-3)
    close(values["negated"], -values["plain"], rtol=1e-3)


# --- models ---


def test_rollouts_in_a_model_shift_and_negate_with_its_rewards():
    rollouts = model_based.explicit_rollouts(
        linear.model(),
        linear.policy(),
        gamma=0.9,
        horizon=STEPS,
        bounds=None,
        adjust=adjust.identity,
    )
    estimator = jax.jit(model_based.make(rollouts, num_rollouts=30))
    starts = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)), jnp.float32)

    def estimate(change):
        params = linear.params(3, spread=0.3, noise=0.0)
        members = params.network["members"]
        changed = members | change({name: members[name] for name in ("bias", "c", "cost")})
        model_params = params._replace(network={"members": changed, "shared": {}})
        return estimator(model_params, linear.policy_params(), starts, jax.random.key(0))

    plain = estimate(lambda rewards: rewards)
    shifted = estimate(lambda rewards: {"bias": rewards["bias"] + SHIFT})
    negated = estimate(lambda rewards: jax.tree.map(jnp.negative, rewards))
    close(shifted.value, plain.value + SHIFT * HORIZON)
    close(negated.value, -plain.value)
    close([shifted.stderr, negated.stderr], [plain.stderr] * 2, rtol=1e-3)


# --- fits ---

TINY = {"hidden_layers": (8,), "batch_size": 16}
RATIOS = TINY | {"averaged_updates": 10}
DUAL = dice.Config(**{**dice.PRESETS["dual_dice"], **RATIOS})
# Fits that know nothing of the sign of rewards but what is in them are odd functions of them.
SHIFTED = {
    "fqe": (fqe, fqe.Config(**TINY)),
    "fqe_distributional": (fqe_distributional, fqe_distributional.Config(**TINY)),
    "best_dice": (dice, dice.Config(**RATIOS)),
    "vpm": (vpm, vpm.Config(**RATIOS)),
}


@functools.cache
def short_fits(name):
    """Estimates after 20 updates, of rewards as they are, shifted and negated; no episode ends."""
    module, config = (SHIFTED | {"dual_dice": (dice, DUAL)})[name]
    problem = chain(num_episodes=20)
    run = single(module.make(config, problem.spec, problem.policy), num_updates=20)
    reward = problem.dataset.reward
    datasets = [problem.dataset._replace(reward=r) for r in (reward, reward + SHIFT, -reward)]
    return [run(0, dataset, context(dataset, problem.behavior_params)) for dataset in datasets]


@pytest.mark.parametrize("name", SHIFTED)
def test_shifted_rewards_shift_what_is_fitted_where_episodes_do_not_end(name):
    plain, shifted, _ = short_fits(name)
    close(shifted.value, plain.value + SHIFT / (1 - GAMMA), rtol=1e-3)


@pytest.mark.parametrize("name", ["dual_dice", "vpm"])
def test_ratios_that_are_fitted_without_rewards_negate_with_them(name):
    plain, _, negated = short_fits(name)
    close(negated.value, -plain.value, rtol=1e-3)


def test_a_ratio_that_is_not_normalized_counts_a_shift_by_its_mass_and_says_so():
    plain, shifted, _ = short_fits("dual_dice")
    mass = plain.diagnostics["mass"]
    close(shifted.value - plain.value, SHIFT * mass / (1 - GAMMA), rtol=1e-3)
    assert abs(mass - 1.0) > 0.2
    assert plain.diagnostics["updates_too_few"] == 1


@pytest.mark.parametrize("name", ["fqe", "fqe_distributional"])
def test_negated_rewards_negate_fitted_values_once_they_have_settled(name):
    settings = {
        "fqe": {"tau": 0.2, "weight_decay": 0.0},
        "fqe_distributional": {"target_period": 4, "num_atoms": 11},
    }
    module, _ = SHIFTED[name]
    config = module.Config(**TINY, learning_rate=1e-2, gamma=0.5, **settings[name])
    problem = chain(num_episodes=50)
    run = single(module.make(config, problem.spec, problem.policy), num_updates=600)
    values = []
    for sign in (1.0, -1.0):
        dataset = problem.dataset._replace(reward=sign * problem.dataset.reward)
        estimate = run(0, dataset, context(dataset, problem.behavior_params))
        values.append(sign * estimate.value)
    close(values[1], values[0], rtol=0.05)
    assert abs(values[0]) > 0.3
