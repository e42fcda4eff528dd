"""Offline Q-learning with discrete actions: test vectors, limits between methods, and traps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from offline_mbrl.learners.discrete import configs, losses, q_learning
from offline_mbrl.types import (
    BoundedActions,
    Context,
    DiscreteActions,
    EnvironmentSpec,
    Transition,
    UsageError,
)

SPEC = EnvironmentSpec(
    observation=jax.ShapeDtypeStruct((3,), jnp.float32), action=DiscreteActions(4)
)
STEP = Transition(
    observation=(),
    action=jnp.int32(1),
    reward=jnp.float32(0.5),
    discount=jnp.float32(1.0),
    next_observation=(),
)
PRIOR = jnp.log(jnp.array([0.5, 0.2, 0.16, 0.14]))  # of the clone
VALUES = jnp.array([1.0, 3.0, 2.0, 9.0])
KEY = jax.random.key(0)
OTHER_KEY = jax.random.key(1)


def batch(size: int = 6) -> Transition:
    generator = np.random.default_rng(0)

    def observations() -> jax.Array:
        return jnp.asarray(generator.normal(size=(size, 3)), jnp.float32)

    return Transition(
        observation=observations(),
        action=jnp.asarray(generator.integers(4, size=size), jnp.int32),
        reward=jnp.asarray(generator.normal(size=size), jnp.float32),
        discount=jnp.asarray(generator.integers(2, size=size), jnp.float32),
        next_observation=observations(),
    )


def learner(kind=configs.Config, spec=SPEC, **settings):
    return q_learning.make(kind(layers=(8,), target_period=2, **settings), spec)


@functools.cache
def started(kind=configs.Config, **settings):
    made = learner(kind, **settings)
    return made, made.init(KEY, None, Context())


@functools.cache
def gradient(kind=configs.Config, **settings):
    """The gradient of a config's loss."""
    config = kind(layers=(8,), **settings)
    return gradient_of_head(config, q_learning.head_of(config))


def gradient_of_head(config, head):
    """The same with heads of one's own; target parameters are another initialization's."""
    module = q_learning.network(config, SPEC, head.num_heads)
    loss = q_learning.loss_of(
        module, head, q_learning.selection_of(config), q_learning.terms_of(config), gamma=0.9
    )
    params, target_params = (module.init(key, jnp.zeros(3))["params"] for key in (KEY, OTHER_KEY))
    return jax.jit(jax.grad(loss, has_aux=True))(params, target_params, batch(), OTHER_KEY)[0]


def assert_equal(a, b, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-7}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# --- test vectors ---


def test_the_huber_loss_of_one_head_bootstraps_and_stops_at_a_terminal():
    head = losses.scalar_head()
    heads = jnp.array([[0.0, 2.0]])
    following = jnp.array([[4.0, 5.0]])
    # target 0.5 + 0.9 * 5 = 5, error 3: beyond the threshold of 1
    loss = losses.td_loss(STEP, heads, following, jnp.array([1]), gamma=0.9, head=head)
    np.testing.assert_allclose(loss, 2.5, rtol=1e-6)
    ended = STEP._replace(discount=jnp.float32(0.0))
    loss = losses.td_loss(ended, heads, following, jnp.array([1]), gamma=0.9, head=head)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-6)  # error 1.5


@pytest.mark.parametrize(("quantiles", "expected"), [((0.0, 1.0), 0.40625), ((3.0, 0.0), 1.546875)])
def test_quantile_regression_is_asymmetric(quantiles, expected):
    loss = losses.quantile_regression(jnp.array(quantiles), jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_the_maximum_is_over_the_mixture_not_a_mixture_of_maxima():
    heads = jnp.array([[1.0, 3.0], [2.0, 1.0], [3.0, 2.0]])  # [K, A]
    mixed = losses.weighted_mixture(jnp.array([0.2, 0.3, 0.5]))(heads)
    action = losses.by_target(mixed, mixed, None)
    np.testing.assert_allclose(mixed[0, action[0]], 2.3, rtol=1e-6)
    np.testing.assert_allclose(jnp.mean(heads, axis=0), [2.0, 2.0])


def test_members_mixed_in_another_order_give_the_same_mixture():
    heads = jax.random.normal(KEY, (5, 3))
    weights = jnp.arange(1.0, 6.0) / 15
    order = jnp.array([3, 1, 4, 0, 2])
    a = losses.weighted_mixture(weights)(heads)
    np.testing.assert_allclose(losses.weighted_mixture(weights[order])(heads[order]), a, rtol=1e-5)


def test_random_weights_are_uniform_numbers_over_their_sum():
    keys = jax.random.split(KEY, 20_000)
    weight = jax.vmap(lambda key: losses.random_mixture(2)(key)(jnp.array([[1.0], [0.0]])))(keys)
    # 1/6 rather than the 1/4 of a uniform point of the simplex
    np.testing.assert_allclose(jnp.mean(weight < 0.25), 1 / 6, atol=0.01)
    weights = jax.vmap(lambda key: losses.random_mixture(200)(key)(jnp.eye(200))[0])(keys[:50])
    # nearer to their mean than uniform points, whose spread is 0.995 of it
    np.testing.assert_allclose(200 * jnp.mean(jnp.std(weights, axis=1)), 0.577, atol=0.01)


def test_the_filter_allows_by_share_of_the_likeliest_action():
    values = losses.filtered(VALUES, PRIOR, threshold=0.3)
    np.testing.assert_array_equal(np.isfinite(values), [True, True, True, False])
    assert jnp.argmax(values) == 1


def test_a_share_that_equals_the_threshold_is_forbidden():
    values = losses.filtered(jnp.array([1.0, 3.0]), jnp.log(jnp.array([1.0, 0.3])), threshold=0.3)
    np.testing.assert_array_equal(values, [1.0, -np.inf])


@pytest.mark.parametrize(("action", "expected"), [(0, 2.407606), (2, 0.407606)])
def test_the_conservative_gap(action, expected):
    gap = losses.conservative_gap(jnp.array([1.0, 2.0, 3.0]), jnp.int32(action))
    np.testing.assert_allclose(gap, expected, rtol=1e-5)


def test_the_clone_pays_for_large_logits():
    loss = losses.imitation_loss(jnp.array([2.0, 0.0]), jnp.int32(1), logit_penalty=0.01)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(2.0)) + 0.01 * 2.0, rtol=1e-6)


# --- limits between methods ---


def test_bcq_without_a_threshold_is_double_dqn():
    filtered = gradient(configs.FilteredConfig, threshold=0.0)
    double = gradient(target_action="double")
    assert_equal(filtered["q"], double["q"])


def test_bcq_of_threshold_one_acts_as_its_clone():
    values = losses.filtered(VALUES, PRIOR, threshold=1.0)
    assert jnp.argmax(values) == jnp.argmax(PRIOR)
    made, state = started(configs.FilteredConfig, threshold=1.0)
    config = configs.FilteredConfig(layers=(8,))
    module = q_learning.network(config, SPEC, 1)
    for observation in batch().observation:
        logits = module.apply({"params": state.params}, observation).logits
        assert made.policy.mode(state.params, observation) == jnp.argmax(logits)


def test_rem_and_ensembles_of_one_head_are_dqn():
    plain = gradient()
    for mix in ("none", "mean", "random_simplex"):
        assert_equal(gradient(configs.EnsembleConfig, num_heads=1, mix=mix), plain)


def test_rem_of_one_hot_weights_is_that_head_alone():
    weights = jnp.array([0.0, 1.0, 0.0])
    one_hot = losses.ensemble_head(3, lambda key: losses.weighted_mixture(weights))
    second = losses.ensemble_head(3, lambda key: lambda heads: heads[1:2])
    config = configs.EnsembleConfig(layers=(8,), num_heads=3)
    assert_equal(gradient_of_head(config, one_hot), gradient_of_head(config, second), atol=1e-7)
    apart = gradient_of_head(config, losses.ensemble_head(3, losses.unmixed))
    columns = slice(4, 8)  # of the second head
    of_output = gradient_of_head(config, one_hot)["q"]["layer_1"]
    np.testing.assert_allclose(
        3 * apart["q"]["layer_1"]["kernel"][:, columns], of_output["kernel"][:, columns], rtol=1e-5
    )
    assert (of_output["bias"][:4] == 0).all()
    assert (of_output["bias"][8:] == 0).all()


def test_cql_without_its_weight_is_qr_dqn():
    quantile = gradient(configs.QuantileConfig, num_heads=5)
    assert_equal(gradient(configs.ConservativeConfig, num_heads=5, cql_alpha=0.0), quantile)
    lowered = gradient(configs.ConservativeConfig, num_heads=5, cql_alpha=1.0)
    assert not np.allclose(lowered["q"]["layer_1"]["bias"], quantile["q"]["layer_1"]["bias"])


def test_qr_dqn_of_one_quantile_is_half_of_dqn():
    half = jax.tree.map(lambda leaf: leaf / 2, gradient())
    assert_equal(gradient(configs.QuantileConfig, num_heads=1), half)


# --- traps ---


def test_quantiles_share_the_action_of_the_target_networks_best_mean():
    head = losses.quantile_head(2)
    target = jnp.array([[0.0, 9.0], [4.0, -9.0]])  # means 2 and 0; maxima 4 and 9
    action = losses.by_target(head.values(target), head.values(-target), None)
    np.testing.assert_array_equal(action, [0])
    heads = jnp.zeros((2, 2))
    loss = losses.td_loss(STEP, heads, target, action, gamma=1.0, head=head)
    expected = losses.quantile_regression(jnp.zeros(2), jnp.array([0.5, 4.5]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_members_that_learn_apart_choose_their_own_next_actions():
    head = losses.ensemble_head(2, losses.unmixed)
    target = jnp.array([[0.0, 9.0], [4.0, -9.0]])
    action = losses.by_target(head.values(target), target, None)
    np.testing.assert_array_equal(action, [1, 0])
    loss = losses.td_loss(STEP, jnp.zeros((2, 2)), target, action, gamma=1.0, head=head)
    np.testing.assert_allclose(loss, (9.0 + 4.0) / 2, rtol=1e-6)  # errors 9.5 and 4.5


def test_an_allowed_action_of_least_value_wins_over_a_forbidden_one():
    """Forbidden actions at the least value would tie with it, and the first of them be chosen."""
    values = jnp.array([9.0, -5.0, -5.0])
    logits = jnp.log(jnp.array([0.01, 0.01, 0.98]))
    assert jnp.argmax(losses.filtered(values, logits, threshold=0.3)) == 2
    negative = jnp.array([-2e8, -3e8, -1e9])  # below a mask of -1e8
    assert jnp.argmax(losses.filtered(negative, logits, threshold=0.3)) == 2


def test_double_dqn_chooses_by_the_online_network():
    target, online = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    np.testing.assert_array_equal(losses.by_online(target, online, None), [0])
    filtered = losses.by_filtered_online(0.5)(target, online, jnp.array([-9.0, 0.0]))
    np.testing.assert_array_equal(filtered, [1])


def test_both_sides_of_rem_have_the_same_mixture():
    """A network that is its own target, without reward: the loss is 0 at any mixture of heads."""
    made = learner(configs.EnsembleConfig, num_heads=3, gamma=1.0)
    state = made.init(KEY, None, Context())
    output = "layer_1"
    # The output is its bias: one value for all actions, another for each head
    zero_kernel = jnp.zeros_like(state.params["q"][output]["kernel"])
    bias = jnp.repeat(jnp.array([1.0, -2.0, 5.0]), 4)
    params = {"q": {**state.params["q"], output: {"kernel": zero_kernel, "bias": bias}}}
    state = state._replace(params=params, target_params=params)
    data = batch()._replace(reward=jnp.zeros(6), discount=jnp.ones(6))
    metrics = made.validate(state, Context(), data, jax.random.key(4))
    np.testing.assert_allclose(metrics["loss/total"], 0.0, atol=1e-10)


def test_gradients_do_not_reach_targets_nor_flow_from_the_clone_into_values():
    filtered = gradient(configs.FilteredConfig, imitation_weight=0.0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(filtered["clone"]))
    weighted = gradient(configs.FilteredConfig, imitation_weight=2.0)
    assert_equal(weighted["q"], filtered["q"])
    assert optax.global_norm(weighted["clone"]) > 0
    heads = jnp.ones((1, 2))

    def loss(following):
        return losses.td_loss(
            STEP, heads, following, jnp.array([0]), gamma=0.9, head=losses.scalar_head()
        )

    assert (jax.grad(loss)(heads) == 0).all()


# --- acting ---


def test_the_policy_is_greedy_for_the_mean_and_samples_with_epsilon():
    made = learner(configs.EnsembleConfig, num_heads=3, epsilon=0.4)
    params = made.init(KEY, None, Context()).params
    observation = batch().observation[0]
    config = configs.EnsembleConfig(layers=(8,), num_heads=3)
    heads = q_learning.network(config, SPEC, 3).apply({"params": params}, observation).heads
    best = jnp.argmax(jnp.mean(heads, axis=0))
    assert made.policy.mode(params, observation) == best
    keys = jax.random.split(KEY, 4_000)
    actions = jax.vmap(made.policy.sample, (None, None, 0))(params, observation, keys)
    np.testing.assert_allclose(jnp.mean(actions == best), 0.7, atol=0.03)
    np.testing.assert_allclose(
        made.policy.log_prob(params, observation, best), np.log(0.7), rtol=1e-5
    )


def test_the_policy_of_bcq_never_plays_greedily_what_its_clone_forbids():
    made, state = started(configs.FilteredConfig)
    kernel = jnp.zeros_like(state.params["q"]["layer_1"]["kernel"])
    params = {
        "q": {**state.params["q"], "layer_1": {"kernel": kernel, "bias": VALUES}},
        "clone": {**state.params["clone"], "layer_1": {"kernel": kernel, "bias": PRIOR}},
    }
    assert made.policy.mode(params, jnp.ones(3)) == 1


# --- an update ---


@pytest.mark.parametrize("target_action", ["max", "double"])
def test_losses_equal_the_equations_written_out(target_action):
    """The target network's value at the action that it, or the online network, finds best."""
    made, state = started(target_action=target_action)
    state = state._replace(target_params=made.init(OTHER_KEY, None, Context()).params)
    data = batch()
    rows = np.arange(6)

    def values(params, observations):
        module = q_learning.network(configs.Config(layers=(8,)), SPEC, 1)
        apply = jax.vmap(lambda x: module.apply({"params": params}, x).heads[0])
        return np.asarray(apply(observations))

    following = values(state.target_params, data.next_observation)
    best = {
        "max": np.argmax(following, axis=1),
        "double": np.argmax(values(state.params, data.next_observation), axis=1),
    }
    assert np.any(best["max"] != best["double"])
    targets = data.reward + 0.99 * data.discount * following[rows, best[target_action]]
    errors = np.abs(values(state.params, data.observation)[rows, data.action] - targets)
    huber = np.where(errors < 1.0, 0.5 * errors**2, errors - 0.5)
    metrics = made.validate(state, Context(), data, KEY)
    np.testing.assert_allclose(metrics["loss/total"], np.mean(huber), rtol=1e-5)


def test_the_conservative_loss_is_the_gap_of_the_mean_of_all_heads():
    made, state = started(configs.ConservativeConfig, num_heads=5)
    module = q_learning.network(configs.ConservativeConfig(layers=(8,)), SPEC, 5)
    data = batch()
    heads = jax.vmap(lambda x: module.apply({"params": state.params}, x).heads)(data.observation)
    gaps = jax.vmap(losses.conservative_gap)(jnp.mean(heads, axis=1), data.action)
    metrics = made.validate(state, Context(), data, KEY)
    np.testing.assert_allclose(metrics["loss/conservative"], jnp.mean(gaps), rtol=1e-5)
    total = metrics["loss/regression"] + 4.0 * jnp.mean(gaps)
    np.testing.assert_allclose(metrics["loss/total"], total, rtol=1e-5)


def test_targets_follow_at_their_period_and_stay_between():
    made, state = started()
    step = jax.jit(made.step)
    first, _ = step(state, Context(), batch(), KEY)
    assert_equal(first.target_params, state.params, rtol=0)
    second, _ = step(first, Context(), batch(), KEY)
    assert_equal(second.target_params, second.params, rtol=0)


# --- settings ---


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_presets_make_learners(name):
    for preset in configs.PRESETS[name].values():
        config = configs.CONFIGS[name](**preset)
        assert configs.name_of(config) == name
        q_learning.make(config, SPEC)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.5}, "dqn: threshold .* read only with target_action filtered"),
        ({"mix": "mean"}, "mix .* read only with head ensemble"),
        ({"num_heads": 3}, "num_heads .* read only with head quantile or ensemble"),
        ({"padding": "VALID"}, "padding .* read only with images"),
        ({"head": "median"}, "head must be one of scalar, quantile, ensemble"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        q_learning.make(configs.Config(**settings), SPEC)


def test_continuous_actions_are_refused():
    spec = EnvironmentSpec(observation=SPEC.observation, action=BoundedActions((-1.0,), (1.0,)))
    with pytest.raises(UsageError, match="rem needs discrete actions"):
        q_learning.make(configs.EnsembleConfig(), spec)
