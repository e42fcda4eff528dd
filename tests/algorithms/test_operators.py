"""The family's choices: operators, value targets, who acts, and the presets' settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_examples import (
    CONFIG,
    KEY,
    SPEC,
    A,
    K,
    N,
    latent_model,
    method_of,
    records,
    table_model,
    window,
)

from offline_mbrl import registry
from offline_mbrl.algorithms import (
    latent,
    latent_crr,
    latent_targets,
    muzero_unplugged,
    operators,
    rosmo,
)
from offline_mbrl.models import unrolled
from offline_mbrl.networks import optimizers
from offline_mbrl.planning import one_step
from offline_mbrl.targets import weights
from offline_mbrl.types import Context, Plan, UsageError


def plans(model, search, params, embeddings):
    planner = operators.make(search, model, num_actions=A, gamma=CONFIG.gamma)
    return jax.jit(planner)(params, embeddings, KEY)


# --- operators ---


@pytest.mark.parametrize("name", operators.OPERATORS)
def test_every_operator_gives_the_same_kind_of_plan(name):
    model, params = latent_model()
    roots = jax.random.normal(KEY, (5, 32))
    plan = plans(model, operators.SearchConfig(name, num_simulations=3), params, roots)
    size = plan.actions.shape[1]
    assert isinstance(plan, Plan)
    assert [leaf.shape for leaf in plan] == [(5,), (5, size), (5, size), (5, size), (5,), (5,)]
    assert all(np.all(np.isfinite(leaf)) for leaf in plan)
    value = jax.vmap(lambda root: model.scalar(model.predict(params, root).value_logits))
    own = jax.jit(value)(roots)
    np.testing.assert_allclose(plan.value, own, rtol=1e-5, atol=1e-5)


def test_an_unknown_operator_is_refused_with_the_list():
    unknown = dataclasses.replace(CONFIG, search=operators.SearchConfig("mcts"))
    with pytest.raises(UsageError, match=r"search\.operator must be one of one_step, .* got mcts"):
        latent.make(unknown, SPEC, caller="rosmo")
    with pytest.raises(UsageError, match=r"value_target must be one of target_value, .* nothing"):
        latent.make(dataclasses.replace(CONFIG, value_target="nothing"), SPEC, caller="rosmo")


def test_a_lookahead_without_a_depth_is_refused():
    with pytest.raises(UsageError, match="search: depth must be at least 1, got 0"):
        operators.make(
            operators.SearchConfig("lookahead_max", depth=0),
            table_model(),
            num_actions=A,
            gamma=0.9,
        )


def test_settings_alone_make_gumbel_the_one_step_lookahead():
    model, params = latent_model()
    roots = jax.random.normal(KEY, (6, 32))
    plain = {"value_scale": 1.0, "maxvisit_init": 0.0, "rescale_values": False}
    search = operators.SearchConfig("gumbel", num_simulations=A, max_depth=1, **plain)
    searched = plans(model, search, params, roots)
    exact = plans(model, operators.SearchConfig(), params, roots)
    np.testing.assert_allclose(searched.weights, exact.weights, atol=1e-5)


def test_the_policy_head_as_an_operator_changes_nothing():
    model, params = latent_model()
    roots = jax.random.normal(KEY, (4, 32))
    plan = plans(model, operators.SearchConfig("policy"), params, roots)
    logits = jax.vmap(model.predict, (None, 0))(params, roots).policy_logits
    np.testing.assert_allclose(plan.weights, jax.nn.softmax(logits), rtol=1e-5)


def test_the_largest_value_takes_the_best_action_of_the_lookahead():
    model, params = latent_model()
    roots = jax.random.normal(KEY, (6, 32))
    plan = plans(model, operators.SearchConfig("largest_value"), params, roots)
    looked = plans(model, operators.SearchConfig("one_step"), params, roots)
    best = np.argmax(looked.qvalues, axis=1)
    np.testing.assert_array_equal(plan.action, best)
    np.testing.assert_array_equal(plan.weights, np.eye(A)[best])


# --- who acts ---


def test_root_noise_is_left_out_while_acting_unless_asked_for():
    search = operators.SearchConfig("muzero", dirichlet_fraction=0.25)
    assert operators.for_acting("search", search).dirichlet_fraction == 0.0
    noisy = dataclasses.replace(search, noisy_acting=True)
    assert operators.for_acting("search", noisy).dirichlet_fraction == 0.25
    assert operators.for_acting("one_step", search).operator == "one_step"


def test_a_sampled_lookahead_acts_by_the_policy_head():
    sampled = operators.SearchConfig("one_step_sampled")
    assert operators.for_acting("search", sampled).operator == "policy"
    learner = rosmo.make(rosmo.Config(**rosmo.PRESETS["sampled"]), SPEC)
    _, params = latent_model()
    observation = jax.random.normal(KEY, (4,))
    model = latent_model()[0]
    heads = model.predict(params, model.represent(params, observation))
    expected = jax.nn.log_softmax(heads.policy_logits)
    log_prob = jax.vmap(learner.policy.log_prob, (None, None, 0))
    log_probs = log_prob(params, observation, jnp.arange(A))
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "closed"), [("one_step", True), ("lookahead", True), ("muzero", False)]
)
def test_a_policy_has_a_log_probability_only_where_its_plan_is_certain(name, closed):
    config = dataclasses.replace(CONFIG, search=operators.SearchConfig(name))
    assert (latent.make(config, SPEC, caller="rosmo").policy.log_prob is not None) == closed


# --- what values regress to ---


def certain_plan(size):
    """A plan whose searched values differ from the model's own."""
    actions = jnp.broadcast_to(jnp.arange(A), (size, A))
    return Plan(
        action=actions[:, 0],
        actions=actions,
        weights=jnp.broadcast_to(jnp.array([0.5, 0.5, 0.0]), (size, A)),
        qvalues=jnp.arange(size)[:, None] + jnp.array([[1.0, 3.0, 100.0]]),
        value=jnp.zeros(size),
        improved_value=10.0 + jnp.arange(size),
    )


@pytest.mark.parametrize("name", latent_targets.VALUE_TARGETS)
def test_each_value_target_is_what_its_name_says(name):
    trajectory = window(records(12, [11]), 0)
    method = method_of(table_model(), dataclasses.replace(CONFIG, value_target=name))
    size = K + N + 1 if method.value_target.every_step else K + 1
    values = jnp.arange(K + N + 1.0)
    targets = latent_targets.trajectory_targets(
        method, trajectory, certain_plan(size), values, jnp.zeros(K + 1)
    )
    bootstraps = {
        "target_value": np.arange(K + N + 1.0),
        "search_root_mean": 10 + np.arange(K + N + 1.0),
        "search_visit_q": 2 + np.arange(K + N + 1.0),
    }
    if name == "search_only":
        expected = 10 + np.arange(K + 1.0)
    else:
        gamma = CONFIG.gamma
        rewards = np.asarray(trajectory.reward)
        expected = [
            sum(gamma**j * rewards[i + j] for j in range(N)) + gamma**N * bootstraps[name][i + N]
            for i in range(K + 1)
        ]
    np.testing.assert_allclose(targets.value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "roots"), [("target_value", K + 1), ("search_root_mean", K + N + 1)]
)
def test_all_roots_of_a_batch_are_searched_in_one_call(name, roots):
    calls = []
    model = table_model()
    exact = one_step.exact(model, num_actions=A, gamma=0.9)

    def planner(params, embeddings, key):
        calls.append(embeddings.shape)
        return exact(params, embeddings, key)

    windows = [window(records(12, [11]), row) for row in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *windows)
    config = dataclasses.replace(CONFIG, value_target=name)
    method = method_of(model, config, latent_targets.clone_nothing)._replace(planner=planner)
    compute = jax.jit(lambda batch: latent_targets.compute_targets(method, (), batch, KEY))
    targets = compute(batch)
    assert calls == [(3 * roots, 4)]  # traced once
    assert targets.policy.shape == (3, K + 1, A)
    alone = compute(jax.tree.map(lambda leaf: leaf[1:2], batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b[0], rtol=1e-5), targets, alone)


def test_candidates_that_repeat_add_up():
    weights_of_all = latent_targets.dense(
        jnp.array([2, 0, 2, 2]), jnp.array([0.1, 0.2, 0.3, 0.4]), A
    )
    np.testing.assert_allclose(weights_of_all, [0.2, 0.0, 0.8], rtol=1e-6)


# --- the relatives ---


def test_only_operator_and_behavior_term_differ_between_rosmo_and_the_comparable_muzero():
    shared = [field.name for field in dataclasses.fields(latent.Config) if field.name != "search"]
    ours = rosmo.Config()
    theirs = muzero_unplugged.Config()
    assert all(getattr(ours, name) == getattr(theirs, name) for name in shared)
    for cls in (muzero_unplugged.QConfig, muzero_unplugged.GumbelConfig):
        assert dataclasses.replace(cls().search, operator="muzero") == theirs.search


def test_the_published_preset_has_the_papers_schedule_and_decay():
    config = muzero_unplugged.Config(**muzero_unplugged.PRESETS["published"])
    rate = optimizers.schedule(config.optimizer)
    for step in (0, 250_000, 500_000, 1_000_000):
        expected = 1e-4 * (1 + np.cos(np.pi * step / 1e6)) / 2
        np.testing.assert_allclose(rate(step), expected, atol=1e-10)
    # The decay of one step is 1e-4 times the rate over its first value.
    decay = rate(500_000) * config.optimizer.weight_decay
    np.testing.assert_allclose(decay, 1e-4 * rate(500_000) / 1e-4, rtol=1e-6)
    assert (config.search.num_simulations, config.gamma, config.target_period) == (50, 0.997, 100)
    assert (config.batch_size, config.unroll_steps, config.td_steps) == (1024, 5, 5)
    assert config.model.num_bins == 601
    assert (config.search.dirichlet_alpha, config.search.visit_temperature) == (0.25, 0.25)
    assert (config.loss.step_weights, config.loss.scale_before_heads) == ("root", False)
    assert config.optimizer.max_grad_norm == 0.0


def test_the_released_presets_are_what_their_code_does():
    baseline = muzero_unplugged.Config(**muzero_unplugged.PRESETS["released"])
    assert (baseline.value_target, baseline.search.num_simulations) == ("search_root_mean", 20)
    assert (baseline.search.noisy_acting, baseline.search.dirichlet_alpha) == (True, 0.3)
    ours = rosmo.Config(**rosmo.PRESETS["released"])
    assert (ours.behavior_advantage, ours.behavior_at_zero) == ("encoded_next", 0.0)
    for config in (baseline, ours):
        assert (config.bootstrap_on_truncation, config.start_on_final) == (False, True)
        assert config.model.num_bins == 20
    atari = rosmo.Config(**rosmo.PRESETS["atari"])
    assert (atari.unroll_steps, atari.td_steps, atari.model.num_bins) == (5, 5, 601)
    assert rosmo.PRESETS["sampled"]["search"] == operators.SearchConfig("one_step_sampled", 4)
    assert (rosmo.Config().target_period, rosmo.Config().batch_size) == (200, 512)


def test_mzu_q_regresses_to_the_prior_times_the_exponential_of_q():
    model, params = latent_model()
    roots = jax.random.normal(KEY, (4, 32))
    plan = plans(model, operators.SearchConfig("muzero_q", 6, temperature=0.5), params, roots)
    prior = jax.vmap(model.predict, (None, 0))(params, roots).policy_logits
    np.testing.assert_allclose(plan.weights, jax.nn.softmax(prior + plan.qvalues / 0.5), rtol=1e-4)


# --- CRR on the latent model ---


def test_the_weights_of_crr():
    advantage = jnp.array([-1.0, 0.0, 2.0, 1e4, -1e4])
    exponential = weights.exponential(advantage, temperature=2.0, maximum=20.0)
    np.testing.assert_allclose(exponential, [np.exp(-0.5), 1, np.e, 20, 0], rtol=1e-6)
    np.testing.assert_array_equal(weights.indicator(advantage), [0, 0, 1, 1, 0])


@pytest.mark.parametrize("weight", ["exponential", "binary"])
def test_crr_clones_the_data_by_its_advantage_and_nothing_else_moves_the_policy(weight):
    config = latent_crr.Config(batch_size=8, weight=weight)
    learner = latent_crr.make(config, SPEC)
    dataset = records(60, range(9, 60, 10))
    batch = jax.jit(learner.sample)(dataset, (), KEY)
    state = learner.init(KEY, batch, Context())
    _, metrics = jax.jit(learner.step)(state, Context(), batch, KEY)
    # Values start at exactly 0, so the advantage is the logged reward, which is above 0 everywhere.
    happened = batch.mask[:, : K + 1]
    size = {
        "exponential": jnp.minimum(jnp.exp(batch.reward[:, : K + 1]), 20.0),
        "binary": jnp.ones_like(happened),
    }
    expected = jnp.mean(happened * size[weight]) * np.log(A)
    np.testing.assert_allclose(metrics["loss/behavior"], expected, rtol=1e-4)
    total = metrics["loss/reward"] + 0.25 * metrics["loss/value"] + metrics["loss/behavior"]
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "linear"}, "weight must be one of exponential, binary, got linear"),
        ({"weight_temperature": 0.0}, "weight_temperature must be above 0, got 0"),
        ({"weight_maximum": 0.0}, "weight_maximum must be above 0, got 0"),
        ({"weight": "binary", "weight_maximum": 3.0}, "read only with weight exponential"),
    ],
)
def test_crr_refuses_weights_that_are_none(changes, message):
    with pytest.raises(UsageError, match=f"latent_crr: .*{message}"):
        latent_crr.make(latent_crr.Config(**changes), SPEC)


def test_without_its_behavior_term_rosmo_is_any_relative_that_looks_one_step_ahead():
    dataset = records(60, range(9, 60, 10))
    ours = rosmo.make(rosmo.Config(batch_size=8, behavior_coef=0.0), SPEC)
    named = registry.lookup("gumbel")
    theirs = named.make(named.config(batch_size=8, search=operators.SearchConfig("one_step")), SPEC)
    batch = jax.jit(ours.sample)(dataset, (), KEY)
    states = []
    for learner in (ours, theirs):
        start = learner.init(KEY, batch, Context())
        states.append(jax.jit(learner.step)(start, Context(), batch, KEY)[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *states)


def test_greedy_acting_has_no_noise_and_sampled_acting_has_it():
    noisy = operators.SearchConfig("gumbel", dirichlet_fraction=0.3)
    assert operators.without_noise(noisy) == dataclasses.replace(
        noisy, gumbel_scale=0.0, dirichlet_fraction=0.0
    )
    assert operators.without_noise(operators.SearchConfig("one_step_sampled")).operator == "policy"
    model, params = latent_model()
    search = operators.SearchConfig("gumbel", num_simulations=4)
    learner = latent.make(dataclasses.replace(CONFIG, search=search), SPEC, caller="rosmo")
    observations = jax.random.normal(KEY, (20, 4))
    roots = jax.vmap(model.represent, (None, 0))(params, observations)
    quiet = plans(model, operators.without_noise(search), params, roots).weights
    modes = jax.jit(jax.vmap(learner.policy.mode, (None, 0)))(params, observations)
    np.testing.assert_array_equal(modes, np.argmax(quiet, axis=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 99.7}, "gamma must be at most 1, got 99.7"),
        ({"gamma": float("nan")}, "gamma must be a finite number"),
        ({"loss": unrolled.LossConfig(step_weights="foo")}, "loss.step_weights must be one of"),  # type: ignore[arg-type]
        ({"acting": "greedy"}, "acting must be one of search, one_step"),
        ({"search": operators.SearchConfig(temperature=float("nan"))}, "search.temperature must"),
        ({"search": operators.SearchConfig(max_depth=-3)}, "search.max_depth must be at least 0"),
        ({"search": operators.SearchConfig(num_simulations=0)}, "search.num_simulations must be"),
        ({"optimizer": optimizers.OptimizerConfig(max_grad_norm=-1.0)}, "optimizer.max_grad_norm"),
        ({"optimizer": optimizers.OptimizerConfig(decay_updates=0)}, "optimizer.decay_updates"),
        (
            {"search": operators.SearchConfig(depth=3)},
            "search.depth is 3, but it is read only with",
        ),
        ({"optimizer": optimizers.OptimizerConfig(schedule="cosine", decay_rate=0.5)}, "schedule"),
    ],
)
def test_settings_that_make_no_learner_are_refused_by_name(changes, message):
    with pytest.raises(UsageError, match=message):
        latent.make(dataclasses.replace(CONFIG, **changes), SPEC, caller="rosmo")


def test_a_setting_of_the_operator_that_acts_is_read():
    search = operators.SearchConfig(depth=3)
    latent.make(
        dataclasses.replace(CONFIG, search=search, acting="lookahead"), SPEC, caller="rosmo"
    )
