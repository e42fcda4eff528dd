"""BRAC and BEAR: closed forms of divergences, and what reaches which of their parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transition_rows import SIZES, SPEC, batch, differs

from offline_mbrl.learners.parts import actor_critic, candidates, divergences
from offline_mbrl.learners.parts.behavior import autoencoded
from offline_mbrl.learners.regularized import brac, configs
from offline_mbrl.networks import conditional_vae, heads, optimizers
from offline_mbrl.networks.distributions import SquashedNormal
from offline_mbrl.settings import in_use
from offline_mbrl.types import Context, UsageError

KEY = jax.random.key(1)
X = jnp.array([[0.0, 0.0], [1.0, 0.0]])
Y = jnp.array([[0.0, 1.0], [2.0, -1.0]])
BEAR = configs.BearConfig(
    **SIZES, vae_layers=(8,), num_next_actions=3, num_candidates=4, constraint_updates=0
)
BRAC = configs.Config(**SIZES, divergence="kl", weight=0.5, constraint_updates=0)


def changed(config, **settings):
    return config.__class__(**{**vars(config), **settings})


@functools.cache
def started(config):
    """A method, its learner, a first state with moved targets, a context, and the compiled step."""
    learner = brac.make(config, SPEC)
    upstream = {}
    for name, stage in brac.pretrain(config, SPEC).items():
        fitted = stage.learner.init(jax.random.key(7), None, Context())
        upstream[name] = stage.outputs(fitted, Context())
    state = learner.init(jax.random.key(0), None, Context())
    state = state._replace(target_critic=jax.tree.map(lambda leaf: 1.5 * leaf, state.critic))
    context = Context(upstream=upstream)
    return brac.method(config, SPEC), learner, state, context, jax.jit(learner.step)


@functools.cache
def gradient_of(config):
    """`state` to the gradient of the actor's objective by all that the actor's parameters hold."""
    method, _, _, context, _ = started(config)

    def gradient(state):
        def loss(actor):
            agent = actor_critic.agent_of(method.networks, state._replace(actor=actor))
            return method.actor_objective(agent, context, batch(), KEY).loss

        return jax.grad(loss)(state.actor)

    return jax.jit(gradient)


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def normal(mean, std):
    return SquashedNormal(mean=jnp.array([mean]), log_std=jnp.log(jnp.array([std])))


# --- divergences ---


@pytest.mark.parametrize(
    ("kernel", "width", "expected"),
    [
        (divergences.laplacian, 20.0, 0.193180),
        (divergences.laplacian, 1.0, 0.766957),
        (divergences.gaussian, 20.0, 0.129956),
        (divergences.gaussian, 1.0, 0.774750),
    ],
)
def test_the_discrepancy_of_two_pairs_of_samples(kernel, width, expected):
    value = divergences.mmd(X, Y, functools.partial(kernel, width=width))
    np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize(("width", "expected"), [(20.0, 0.074174), (1.0, 0.848929)])
def test_without_a_root_and_at_half_the_width_it_is_bracs(width, expected):
    kernel = functools.partial(divergences.laplacian, width=width / 2.0)
    np.testing.assert_allclose(divergences.squared_mmd(X, Y, kernel), expected, atol=1e-5)


def test_of_equal_samples_it_is_a_thousandth_and_their_order_does_not_matter():
    kernel = functools.partial(divergences.laplacian, width=20.0)
    np.testing.assert_allclose(divergences.mmd(X, X, kernel), 1e-3, rtol=1e-3)
    np.testing.assert_allclose(
        divergences.mmd(X[::-1], Y, kernel), divergences.mmd(X, Y[::-1], kernel), rtol=1e-5
    )


def test_the_divergence_of_squashed_normals_is_that_of_normals():
    near, far = normal(0.3, 0.5), normal(-0.1, 0.8)
    np.testing.assert_allclose(divergences.kl(near, far), 0.290316, atol=1e-5)
    np.testing.assert_allclose(divergences.kl(far, near), 0.629996, atol=1e-5)
    assert divergences.kl(near, near) == 0.0


def test_its_estimate_is_unbiased_and_that_of_the_squashed_densities():
    near, far = normal(0.3, 0.5), normal(-0.1, 0.8)
    samples = divergences.samples_before_tanh(near, KEY, 20_000)
    estimate = divergences.sampled_kl(near, far, samples)
    np.testing.assert_allclose(estimate, 0.290316, atol=0.02)
    assert divergences.sampled_kl(near, near, samples) == 0.0
    squashed = [d.log_prob(jnp.tanh(samples[0])) for d in (near, far)]
    value = divergences.sampled_kl(near, far, samples[:1])
    np.testing.assert_allclose(value, squashed[0] - squashed[1], rtol=1e-4)


def test_log_deviations_are_bounded_smoothly():
    value = heads.between(jnp.array([-2.0, 0.0, 1.0]), *BRAC.log_std_bounds)
    np.testing.assert_allclose(value, [-4.910069, -2.5, -0.596015], atol=1e-5)


def test_samples_are_compared_before_tanh():
    """5 of the policy and 10 of the autoencoder, which are nearly the same action."""
    method, _, state, _, _ = started(BEAR)
    vae = conditional_vae.make(3, 2, (8,))
    vae = vae._replace(decode=lambda params, condition, latent: jnp.full(2, 10.0))
    model = autoencoded(vae, functools.partial(divergences.laplacian, width=20.0), 4)
    five = SquashedNormal(mean=jnp.full(2, 5.0), log_std=jnp.full(2, -20.0))
    agent = actor_critic.agent_of(method.networks, state)._replace(policy=lambda x: five)
    distance = model.divergence(agent, Context(), batch().observation, KEY)
    np.testing.assert_allclose(distance, np.sqrt(2.0 - 2.0 * np.exp(-10.0 / 40.0)), rtol=1e-4)


# --- equations ---


@pytest.mark.parametrize(("weight", "expected"), [(0.1, 2.9305), (0.0, 2.98)])
def test_targets_pay_for_the_divergence_in_brac_v_alone(weight, expected):
    step = jax.tree.map(lambda leaf: leaf[1], batch())._replace(reward=jnp.float32(1.0))
    q = jnp.array([[2.0], [3.0]])
    target = candidates.best_target(step, q, gamma=0.99, penalty=jnp.float32(weight * 0.5))
    np.testing.assert_allclose(target, expected, rtol=1e-5)


def test_the_actor_pays_in_both():
    loss = functools.partial(brac.actor_loss, jnp.array([2.0, 3.0]), jnp.float32(0.5))
    np.testing.assert_allclose(loss(weight=jnp.float32(0.1)), -1.95, rtol=1e-6)
    assert jax.grad(lambda weight: loss(weight=weight))(jnp.float32(0.1)) == 0.0


def test_the_weight_grows_above_the_threshold_and_gives_the_divergence_no_gradient():
    slopes = jax.grad(functools.partial(brac.weight_loss, threshold=0.05), (0, 1))
    np.testing.assert_allclose(slopes(jnp.log(2.0), jnp.float32(0.15)), [-0.2, 0.0], rtol=1e-5)
    assert float(slopes(jnp.log(2.0), jnp.float32(0.01))[0]) > 0


def test_a_bounded_weight_stops_at_its_bound_and_returns():
    optimizer = optimizers.bounded(optax.sgd(1.0), *brac.LOG_WEIGHT_BOUNDS)
    params = {"log_weight": jnp.float32(9.5)}
    opt_state = optimizer.init(params)
    for gradient, expected in ((-3.0, 10.0), (-3.0, 10.0), (2.0, 8.0), (99.0, -5.0)):
        params, opt_state = optimizers.descend(
            optimizer, {"log_weight": jnp.float32(gradient)}, opt_state, params
        )
        np.testing.assert_allclose(params["log_weight"], expected, rtol=1e-6)


# --- one update ---


def test_the_constraint_reaches_the_policy_although_the_weight_is_learned():
    """Without critics, what is left is the weight times the divergence's own gradient.

    A dual step whose gradient also goes through the divergence would cancel it.
    """
    config = changed(BEAR, constraint_updates=1)
    method, _, state, context, step = started(config)
    _, key_divergence, _ = jax.random.split(KEY, 3)
    state, _ = step(state, context, batch(), KEY)
    state = state._replace(num_updates=jnp.int32(0))
    behavior = brac.behavior_model(config, SPEC)

    def divergence(policy):
        actor = {**state.actor, "policy": policy}
        agent = actor_critic.agent_of(method.networks, state._replace(actor=actor))
        return jnp.mean(behavior.divergence(agent, context, batch().observation, key_divergence))

    own = jax.jit(jax.grad(divergence))(state.actor["policy"])
    assert float(optax.tree.norm(own)) > 1e-3
    expected = scaled(own, jnp.exp(state.actor["log_weight"]))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6),
        gradient_of(config)(state)["policy"],
        expected,
    )


@pytest.mark.parametrize(
    "settings", [{"divergence": "kl_sampled"}, {"divergence": "mmd_gaussian", "vae_layers": (8,)}]
)
def test_every_divergence_of_a_fixed_weight_moves_the_policy(settings):
    """Critics are left out."""
    config = changed(BRAC, constraint_updates=1, **settings)
    _, _, state, _, _ = started(config)
    assert float(optax.tree.norm(gradient_of(config)(state)["policy"])) > 1e-3


def test_neither_critics_nor_the_constraint_move_the_autoencoder():
    _, _, state, _, _ = started(BEAR)
    gradient = gradient_of(BEAR)(state)
    actor = {**state.actor, "log_weight": jnp.float32(3.0)}
    other = gradient_of(BEAR)(state._replace(critic=scaled(state.critic, 10.0), actor=actor))
    assert differs(gradient["policy"], other["policy"])
    assert not differs(gradient["behavior"], other["behavior"])
    assert float(optax.tree.norm(gradient["behavior"])) > 0


def test_the_weight_learns_from_the_divergence_alone():
    _, _, state, context, step = started(BEAR)
    gradient = gradient_of(BEAR)
    other = gradient(state._replace(critic=scaled(state.critic, 10.0)))["log_weight"]
    assert other == gradient(state)["log_weight"]
    after, metrics = step(state, context, batch(), KEY)
    above = float(metrics["divergence"]) > BEAR.threshold
    assert (float(after.actor["log_weight"]) > 0) is above
    assert metrics["divergence_weight"] == 1.0  # it starts there, whatever the key
    moved = jnp.abs(after.actor["log_weight"])  # by a rate of its own, not by the actor's
    np.testing.assert_allclose(moved, BEAR.weight_learning_rate, rtol=1e-2)


def test_at_first_critics_are_left_out():
    config = changed(BEAR, constraint_updates=2)
    _, _, state, _, _ = started(config)
    for updates, is_same in ((1, True), (2, False)):
        here = state._replace(num_updates=jnp.int32(updates))
        other = here._replace(critic=scaled(state.critic, 10.0))
        gradients = [gradient_of(config)(s)["policy"] for s in (here, other)]
        assert differs(*gradients) is not is_same


def test_the_actor_descends_its_equation_with_a_fixed_weight_too():
    """Values written out from the exact divergence; the policy moves."""
    method, _, state, context, step = started(BRAC)
    after, metrics = step(state, context, batch(), KEY)
    agent = actor_critic.agent_of(method.networks, state)
    _, key_actor = jax.random.split(KEY)
    key_action = jax.random.split(key_actor, 3)[0]
    observations = batch().observation
    action, _ = actor_critic.sample_actions(agent.policy, observations, key_action)
    clone = brac.policy_network(BRAC, SPEC, "smooth").apply
    distances = jax.vmap(
        lambda x: divergences.kl(agent.policy(x), clone(context.upstream["behavior"], x))
    )(observations)
    q = jnp.min(agent.critics(observations, action), axis=0)
    np.testing.assert_allclose(metrics["loss/actor"], jnp.mean(0.5 * distances - q), rtol=1e-4)
    assert differs(after.actor["policy"], state.actor["policy"])


def test_brac_v_lowers_every_target_by_the_weighed_divergence_of_the_next_observation():
    valued = changed(BRAC, penalize_values=True)
    _, _, state, context, _ = started(BRAC)
    targets = [
        started(config)[0].backup(
            actor_critic.agent_of(started(config)[0].networks, state), context, batch(), KEY
        )
        for config in (BRAC, valued)
    ]
    density = brac.policy_network(BRAC, SPEC, "smooth").apply
    distances = jax.vmap(
        lambda x: divergences.kl(
            density(state.actor["policy"], x), density(context.upstream["behavior"], x)
        )
    )(batch().next_observation)
    expected = 0.99 * batch().discount * 0.5 * distances
    np.testing.assert_allclose(targets[0] - targets[1], expected, rtol=1e-4, atol=1e-6)


# --- assembly ---


def test_the_exported_policy_is_the_mode_or_the_best_of_candidates():
    _, learner, state, context, _ = started(BRAC)
    params = learner.policy_params(state, context)
    mean = brac.policy_network(BRAC, SPEC, "smooth").apply(params, batch().observation[0]).mean
    np.testing.assert_allclose(learner.policy.mode(params, batch().observation[0]), jnp.tanh(mean))
    _, learner, state, context, _ = started(BEAR)
    params = learner.policy_params(state, context)
    assert set(params) == {"actor", "critic"}
    assert set(params["actor"]) == set(state.actor["policy"])
    assert learner.policy.log_prob is None


def test_an_autoencoder_needs_no_earlier_stage_and_kernels_differ():
    assert brac.pretrain(BEAR, SPEC) == {}
    method, _, state, context, _ = started(BEAR)
    values = []
    for name in ("mmd_laplacian", "mmd_gaussian"):
        behavior = brac.behavior_model(changed(BEAR, divergence=name), SPEC)
        agent = actor_critic.agent_of(method.networks, state)
        values.append(behavior.divergence(agent, context, batch().observation, KEY))
    assert differs(*values)


def test_settings_that_a_divergence_does_not_read_are_refused():
    assert "vae_layers" not in in_use(BRAC, SPEC)
    with pytest.raises(UsageError, match=r"kernel_width is 3\.0, but it is read only with"):
        brac.make(changed(BRAC, kernel_width=3.0), SPEC)
