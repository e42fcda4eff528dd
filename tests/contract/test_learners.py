"""Every registered learner, and every earlier stage of one, against the contract."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import registry
from offline_mbrl.algorithms import operators
from offline_mbrl.data import trees
from offline_mbrl.learners import bc
from offline_mbrl.networks import optimizers
from offline_mbrl.problems import toy
from offline_mbrl.training import checkpoint, fit, sharding
from offline_mbrl.types import Algorithm, BoundedActions, DiscreteActions, Learner, UsageError


# Settings that make each entry tiny, and the score that it must beat after so many updates on its toy problem. An
# entry is an algorithm's name; one that takes both kinds of actions has another, with a remark after a slash.
def search(operator: str) -> dict:
    """Four simulations."""
    return {"search": operators.SearchConfig(operator=operator, num_simulations=4)}


TINY = {
    "bc": {"batch_size": 16},
    "bc/continuous": {"batch_size": 16, "continuous": bc.ContinuousConfig(layers=(16,), learning_rate=1e-3)},
    "gumbel": {"batch_size": 16, **search("gumbel")},
    "latent_crr": {"batch_size": 16}, "muzero_unplugged": {"batch_size": 16, **search("muzero")},
    "mzu_q": {"batch_size": 16, **search("muzero_q")},
    "rosmo": {"batch_size": 16},
    "sac": {"batch_size": 16, "actor_layers": (16,), "critic_layers": (16,), "critic_learning_rate": 1e-3,
            "actor_learning_rate": 1e-3, "temperature_learning_rate": 1e-3},
    "skeleton": {"batch_size": 16, "hidden_layers": (16,)},
}  # fmt: skip
KEY, OTHER_KEY = jax.random.key(0), jax.random.key(1)
# The chain's own discount factor: at 0.988 its actions differ by a hundredth.
CONTINUOUS = {"bc/continuous", "sac", "skeleton"}
LATENT = set(TINY) - CONTINUOUS - {"bc"}
FAST = optimizers.OptimizerConfig(learning_rate=5e-3)
LEARNING = {name: {**TINY[name], "gamma": 0.9, "optimizer": FAST} for name in LATENT}
LEARNING |= {name: TINY[name] for name in ("bc/continuous", "sac")}
# Tree searches waver between 500 and 1,000 updates; without one, every seed is at the optimum after 250.
NUM_UPDATES = {name: 2_000 if "search" in TINY[name] else 1_000 for name in LATENT}
STATED_SCORE = {name: 0.95 if name in CONTINUOUS else 0.99 for name in TINY}
EITHER_KIND = {name.split("/")[0] for name in TINY if "/" in name}


def algorithm_of(name: str) -> Algorithm:
    return registry.ALGORITHMS[name.split("/")[0]]


def problem(name: str) -> toy.Problem:
    """What is cloned must be worth it: the chain's data mostly move right, and of the bandit's only the best remain."""
    if name not in CONTINUOUS:
        return toy.chain(0, right=0.8)
    case = toy.bandit(0)
    if name != "bc/continuous":
        return case
    starts = case.dataset.starts
    return case._replace(dataset=case.dataset._replace(starts=starts[case.dataset.reward[starts] > -0.1]))


@functools.cache
def learners(name: str) -> dict[str, Learner]:
    algorithm, case = algorithm_of(name), problem(name)
    config = algorithm.config(**TINY[name])
    return {**algorithm.pretrain(config, case.spec), "train": algorithm.make(config, case.spec)}


@functools.cache
def stages(name: str) -> dict[str, tuple[Learner, toy.Problem, dict]]:
    """Each stage with its problem and what the stages before it hand on."""
    case, found, given = problem(name), {}, {}
    for stage, learner in learners(name).items():
        found[stage] = (learner, case, dict(given))
        if stage != "train":
            state = fit.init(learner, case.dataset, key=jax.random.key(1), given=given)
            given[stage] = fit.policy_params(learner, state)
    return found


CASES = [(name, stage) for name in TINY for stage in learners(name)]
every_entry = pytest.mark.parametrize("name", TINY)
every_stage = pytest.mark.parametrize(("name", "stage"), CASES)


@functools.cache
def start(name: str, stage: str):
    learner, case, given = stages(name)[stage]

    @jax.jit
    def drawn(dataset, given):
        key_sample, key_init = jax.random.split(jax.random.key(0))
        example = learner.sample(dataset, key_sample)
        return learner.init(key_init, example, (), given), example

    return learner, case.dataset, *drawn(case.dataset, given)


def train(name: str, stage: str, *, learner: Learner | None = None, **options):
    """Blocks of two updates and of one."""
    made, case, given = stages(name)[stage]
    settings = {"key": KEY, "num_updates": 3, "block_updates": 2, "given": given, **options}
    return fit.fit(learner or made, case.dataset, **settings)


@functools.cache
def trained(name: str, stage: str):
    """The result of `train` on one device, which several tests compare with, and how often the step was traced."""
    learner, traces = learners(name)[stage], []
    counted = learner._replace(step=lambda *args: (traces.append(1), learner.step(*args))[1])
    return train(name, stage, learner=counted), len(traces)


def assert_close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_every_algorithm_has_a_case():
    assert {name.split("/")[0] for name in TINY} == set(registry.ALGORITHMS)


@every_stage
def test_1_init_works_on_abstract_values(name, stage):
    learner, case, given = stages(name)[stage]
    abstract = fit.template(learner, case.dataset, key=jax.random.key(0), seeds=[0, 1], given=jax.tree.map(
        lambda leaf: jnp.stack([leaf, leaf]), given))  # fmt: skip
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))


@every_stage
def test_2_blocks_of_different_lengths_trace_the_step_once(name, stage):
    result, num_traces = trained(name, stage)
    assert (result.num_updates, num_traces) == (3, 1)


@every_stage
def test_3_the_state_keeps_structure_shapes_and_dtypes(name, stage):
    learner, dataset, state, batch = start(name, stage)
    shape = lambda tree: jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)  # noqa: E731
    after, _ = jax.jit(learner.step)(state, batch, jax.random.key(1))
    assert shape(after) == shape(state)
    assert shape(learner.refresh(state, dataset, jax.random.key(2))) == shape(state)


@every_stage
def test_4_metrics_are_finite_scalars_with_the_same_keys(name, stage):
    learner, dataset, state, batch = start(name, stage)
    step = jax.jit(learner.step)
    state, first = step(state, batch, jax.random.key(1))
    _, second = step(state, learner.sample(dataset, jax.random.key(2)), jax.random.key(3))
    assert first.keys() == second.keys()
    assert "loss/total" in first
    assert all(value.shape == () and np.isfinite(value) for value in (*first.values(), *second.values()))


@every_stage
def test_5_vmap_over_seeds_equals_the_loop_over_seeds(name, stage):
    given = stages(name)[stage][2]
    run = functools.partial(train, name, stage, num_updates=5)
    stacked = run(seeds=[3, 8], given=jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), given)).state.learner
    for index, seed in enumerate([3, 8]):
        one = run(key=jax.random.fold_in(KEY, seed)).state.learner  # unbatched: the program is compiled already
        assert_close(jax.tree.map(lambda leaf, index=index: leaf[index], stacked), one, 1e-4)


@every_stage
def test_6_a_batch_split_over_eight_devices_equals_one_device(name, stage):
    split = train(name, stage, mesh=sharding.mesh(jax.devices()[:8]))
    assert_close(split.state.learner, trained(name, stage)[0].state.learner, 1e-3)


@every_stage
def test_7_the_key_decides_the_result(name, stage):
    one, same, other = (
        result.state.learner
        for result in (trained(name, stage)[0], train(name, stage), train(name, stage, key=OTHER_KEY))
    )
    assert checkpoint.sha256(one) == checkpoint.sha256(same)
    assert checkpoint.sha256(one) != checkpoint.sha256(other)


@every_stage
def test_8_a_checkpoint_round_trip_is_exact(name, stage, tmp_path):
    _, _, state, _ = start(name, stage)
    checkpoint.save(tmp_path, 1, state, {})
    assert checkpoint.sha256(checkpoint.restore(tmp_path, state).state) == checkpoint.sha256(state)


@every_entry
def test_9_the_policy_gives_actions_inside_the_spec(name):
    learner, dataset, state, _ = start(name, "train")
    params, spec = learner.policy_params(state), problem(name).spec
    observations = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), dataset.observation)
    one = jax.jit(learner.policy.mode)(params, jax.tree.map(lambda leaf: leaf[0], observations))
    sample = jax.jit(jax.vmap(learner.policy.sample, (None, 0, 0)))
    many = sample(params, observations, jax.random.split(jax.random.key(0), 4))
    assert many.shape == (4, *one.shape)
    if isinstance(spec.action, BoundedActions):
        assert one.shape == (spec.action.size,)
        assert float(jnp.max(jnp.abs(many))) <= 1.0
    else:
        assert one.shape == ()
        assert jnp.issubdtype(many.dtype, jnp.integer)
        assert set(np.asarray(many).tolist()) <= set(range(spec.action.num_actions))
    if learner.policy.log_prob is not None:
        actions, weights = quadrature(spec.action)
        log_probs = jax.jit(jax.vmap(learner.policy.log_prob, (None, None, 0)))(params, observations[0], actions)
        assert log_probs.shape == weights.shape
        np.testing.assert_allclose(jnp.sum(weights * jnp.exp(log_probs)), 1.0, rtol=1e-3)


def quadrature(action: BoundedActions | DiscreteActions):
    """Points and weights that integrate a density, or sum probabilities: all actions, or the midpoints of cells."""
    if isinstance(action, DiscreteActions):
        return jnp.arange(action.num_actions), jnp.ones(action.num_actions)
    assert action.size == 1
    edges = jnp.tanh(jnp.linspace(-9.0, 9.0, 20_001))  # finer where squashed densities can be steep
    return 0.5 * (edges[1:] + edges[:-1])[:, None], edges[1:] - edges[:-1]


@every_entry
def test_9b_policy_params_are_nested_dicts_so_that_they_can_be_exported(name):
    learner, _, state, _ = start(name, "train")
    params = learner.policy_params(state)
    assert jax.tree.structure(trees.unflatten(trees.flatten(params))) == jax.tree.structure(params)


@every_entry
def test_10_it_learns_the_toy_problem(name, monkeypatch):
    # Thousands of updates take longer to run than to compile.
    optimized = functools.partial(fit._jit, compiler_options={"xla_backend_optimization_level": 1})
    monkeypatch.setattr(fit, "_jit", optimized)
    algorithm, case, given = algorithm_of(name), problem(name), {}
    config = algorithm.config(**{**LEARNING.get(name, {}), "batch_size": 32})
    entry = {**algorithm.pretrain(config, case.spec), "train": algorithm.make(config, case.spec)}
    untrained = None
    for stage, learner in entry.items():
        shared = {"key": jax.random.key(5), "seeds": [0, 1], "given": given}
        before = fit.policy_params(learner, fit.init(learner, case.dataset, **shared))
        num_updates = NUM_UPDATES.get(name, 4_000)
        state = fit.fit(learner, case.dataset, num_updates=num_updates, block_updates=1_000, **shared).state
        given = {**given, stage: fit.policy_params(learner, state)}
        untrained = before
    score = jax.jit(jax.vmap(lambda params: case.score(entry["train"].policy, params)))
    assert float(jnp.min(score(given["train"]))) > STATED_SCORE[name] > float(jnp.max(score(untrained)))


# --- configs ---


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_every_setting_is_read(name):
    """A setting that nothing reads is a silent no-op: the source of the algorithm must mention each by name."""
    import importlib
    import inspect
    import sys

    algorithm = registry.ALGORITHMS[name]

    def unread(cls, owners):
        text = "".join(inspect.getsource(sys.modules[owner]) for owner in owners)
        for field in dataclasses.fields(cls):
            kind = type(getattr(cls(), field.name))
            if dataclasses.is_dataclass(kind):
                yield from unread(kind, [kind.__module__])
            elif f"config.{field.name}" not in text and field.name not in ("num_updates", "model_updates"):
                yield field.name

    owners = [cls.__module__ for cls in algorithm.config.__mro__ if dataclasses.is_dataclass(cls)]
    for owner in owners:
        importlib.import_module(owner)
    assert list(unread(algorithm.config, owners)) == []


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, a in registry.ALGORITHMS.items() for p in a.presets])
def test_every_preset_makes_a_learner(name, preset):
    algorithm = registry.ALGORITHMS[name]
    assert isinstance(algorithm.make(algorithm.config(**algorithm.presets[preset]), problem(name).spec), Learner)


@pytest.mark.parametrize("name", sorted(set(registry.ALGORITHMS) - EITHER_KIND))
def test_actions_of_the_other_kind_are_refused(name):
    other = toy.chain(0, num_episodes=2) if name in CONTINUOUS else toy.bandit(0, num_steps=4)
    with pytest.raises(UsageError, match="actions"):
        registry.ALGORITHMS[name].make(registry.ALGORITHMS[name].config(), other.spec)


def test_an_unknown_algorithm_names_the_closest():
    with pytest.raises(UsageError, match="rosmo"):
        registry.lookup("rosmoo")
