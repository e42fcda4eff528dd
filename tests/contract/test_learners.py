"""Every registered learner, and every earlier stage of one, against the contract.

Problems and settings are the cases that stand beside each registration: a new entry is tested by
being listed.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offline_mbrl import registry
from offline_mbrl.data import normalize, trees
from offline_mbrl.problems import toy
from offline_mbrl.training import checkpoint, fit, programs, sharding
from offline_mbrl.training.stages import MAIN, of_algorithm, plain, train_stages
from offline_mbrl.types import (
    Algorithm,
    BoundedActions,
    Case,
    Context,
    DiscreteActions,
    Learner,
    Stage,
    UsageError,
)

KEY = jax.random.key(0)
OTHER_KEY = jax.random.key(1)
CASES = {
    name if not index else f"{name}/{index}": (algorithm, case)
    for name, algorithm in registry.ALGORITHMS.items()
    for index, case in enumerate(algorithm.cases)
}


class StageCase(NamedTuple):
    """One stage of a case, with what it sees."""

    stage: Stage
    dataset: object
    context: Context  # of a single seed


@functools.cache
def problem(name: str) -> toy.Problem:
    return CASES[name][1].problem()


@functools.cache
def stages(name: str) -> dict[str, StageCase]:
    """Each stage with its data and what freshly initialized stages before it hand on."""
    algorithm, case = CASES[name]
    config = algorithm.config(**case.config)
    cases = {}
    upstream = {}
    for stage_name, stage in of_algorithm(algorithm, config, problem(name).spec).items():
        dataset = stage.prepare(problem(name).dataset)
        statistics = (stage.statistics or normalize.statistics)(dataset)
        context = Context(statistics=statistics, upstream=dict(upstream))
        cases[stage_name] = StageCase(stage=stage, dataset=dataset, context=context)
        if stage_name != MAIN:
            state = fit.init(stage.learner, dataset, key=jax.random.key(1), context=context)
            outputs = stage.outputs or stage.learner.policy_params
            upstream[stage_name] = fit.over_seeds(outputs, state, context)
    return cases


STAGES = [(name, stage) for name in CASES for stage in stages(name)]
every_entry = pytest.mark.parametrize("name", CASES)
every_stage = pytest.mark.parametrize(("name", "stage"), STAGES)


def over_seeds(context: Context, count: int) -> Context:
    """The same constants for `count` seeds."""
    return context._replace(
        upstream=jax.tree.map(lambda leaf: jnp.stack([leaf] * count), context.upstream)
    )


@functools.cache
def start(name: str, stage: str):
    """Learner, dataset, context, state, cache and an example batch of a fresh stage."""
    case = stages(name)[stage]
    learner = case.stage.learner

    @jax.jit
    def initialize(dataset, context):
        key_sample, key_init = jax.random.split(jax.random.key(0))
        example = learner.sample(dataset, None, key_sample)
        return learner.init(key_init, example, context), learner.init_cache(example), example

    state, cache, example = initialize(case.dataset, case.context)
    return learner, case.dataset, case.context, state, cache, example


def train(name: str, stage: str, *, learner: Learner | None = None, **options):
    """Blocks of two updates and of one."""
    case = stages(name)[stage]
    settings = {
        "key": KEY,
        "num_updates": 3,
        "block_updates": 2,
        "context": case.context,
        **options,
    }
    return fit.fit(learner or case.stage.learner, case.dataset, **settings)


@functools.cache
def trained(name: str, stage: str):
    """The result of `train` on one device, which several tests compare with.

    With it, how often the step was traced, and the states after each block.
    """
    learner = stages(name)[stage].stage.learner
    traces = []
    states = {}

    def counted(*arguments):
        traces.append(1)
        return learner.step(*arguments)

    def keep(progress):
        states[progress.step] = jax.device_get(progress.state)

    result = train(name, stage, learner=learner._replace(step=counted), hooks=[keep])
    return result, len(traces), states


def assert_close(a, b, tolerance):
    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, a, b)


def shapes(tree):
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def test_every_algorithm_has_a_case():
    assert {name.split("/")[0] for name in CASES} == set(registry.ALGORITHMS)


@every_stage
def test_1_init_works_on_abstract_values(name, stage):
    case = stages(name)[stage]
    abstract = fit.template(
        case.stage.learner,
        case.dataset,
        key=jax.random.key(0),
        seeds=[0, 1],
        context=over_seeds(case.context, 2),
    )
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))


@every_stage
def test_2_blocks_of_different_lengths_trace_the_step_once(name, stage):
    result, num_traces, _ = trained(name, stage)
    assert (result.num_updates, num_traces) == (3, 1)


@every_stage
def test_3_state_and_cache_keep_structure_shapes_and_dtypes(name, stage):
    learner, dataset, context, state, cache, batch = start(name, stage)
    after, _ = jax.jit(learner.step)(state, context, batch, jax.random.key(1))
    assert shapes(after) == shapes(state)
    refresh = jax.jit(learner.refresh)
    refreshed = refresh(state, context, dataset, cache, jnp.int32(0), jax.random.key(2))
    assert shapes(refreshed[0]) == shapes(state)
    assert shapes(refreshed[1]) == shapes(cache)


@every_stage
def test_4_metrics_are_finite_scalars_with_the_same_keys(name, stage):
    learner, dataset, context, state, _, batch = start(name, stage)
    step = jax.jit(learner.step)
    state, first = step(state, context, batch, jax.random.key(1))
    batch = learner.sample(dataset, None, jax.random.key(2))
    _, second = step(state, context, batch, jax.random.key(3))
    assert first.keys() == second.keys()
    assert "loss/total" in first
    values = (*first.values(), *second.values())
    assert all(value.shape == () and np.isfinite(value) for value in values)


@every_stage
def test_4b_held_out_losses_are_those_of_the_step_without_an_update(name, stage):
    learner, _, context, state, _, batch = start(name, stage)
    key = jax.random.key(1)
    held_out = jax.jit(learner.validate)(state, context, batch, key)
    _, metrics = jax.jit(learner.step)(state, context, batch, key)
    assert "loss/total" in held_out
    common = [label for label in held_out if label in metrics]
    assert_close([held_out[label] for label in common], [metrics[label] for label in common], 1e-4)


@every_stage
def test_5_vmap_over_seeds_equals_the_loop_over_seeds(name, stage):
    context = over_seeds(stages(name)[stage].context, 2)
    stacked = train(name, stage, num_updates=5, seeds=[3, 8], context=context).state.learner
    for index, seed in enumerate([3, 8]):
        # Unbatched: the program is compiled already.
        alone = train(name, stage, num_updates=5, key=jax.random.fold_in(KEY, seed)).state.learner
        assert_close(jax.tree.map(lambda leaf, i=index: leaf[i], stacked), alone, 1e-4)


@every_stage
def test_6_a_batch_split_over_eight_devices_equals_one_device(name, stage):
    split = train(name, stage, mesh=sharding.mesh(jax.devices()[:8]))
    assert_close(split.state.learner, trained(name, stage)[0].state.learner, 1e-3)


@every_stage
def test_7_the_key_decides_the_result(name, stage):
    first = checkpoint.sha256(trained(name, stage)[0].state.learner)
    assert checkpoint.sha256(train(name, stage).state.learner) == first
    assert checkpoint.sha256(train(name, stage, key=OTHER_KEY).state.learner) != first


@every_stage
def test_8_a_checkpoint_round_trip_is_exact(name, stage, tmp_path):
    _, _, _, state, cache, _ = start(name, stage)
    saved = (state, cache)
    checkpoint.save(tmp_path, 1, saved, {})
    restored = checkpoint.restore(tmp_path, saved).state
    assert checkpoint.sha256(restored) == checkpoint.sha256(saved)


@every_stage
def test_8b_resuming_equals_not_stopping_bit_for_bit(name, stage):
    result, _, states = trained(name, stage)
    assert list(states) == [2, 3]
    resumed = train(name, stage, start=states[2])
    assert resumed.num_updates == 1
    assert checkpoint.sha256(resumed.state) == checkpoint.sha256(result.state)


@every_entry
def test_9_the_policy_gives_actions_inside_the_spec(name):
    learner, dataset, context, state, _, _ = start(name, MAIN)
    params = learner.policy_params(state, context)
    spec = problem(name).spec
    observations = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), dataset.observation)
    single = jax.tree.map(lambda leaf: leaf[0], observations)
    action = jax.jit(learner.policy.mode)(params, single)
    sample = jax.jit(jax.vmap(learner.policy.sample, (None, 0, 0)))
    actions = sample(params, observations, jax.random.split(jax.random.key(0), 4))
    assert actions.shape == (4, *action.shape)
    if isinstance(spec.action, BoundedActions):
        assert action.shape == (spec.action.size,)
        assert float(jnp.max(jnp.abs(actions))) <= 1.0
    else:
        assert action.shape == ()
        assert jnp.issubdtype(actions.dtype, jnp.integer)
        assert set(np.asarray(actions).tolist()) <= set(range(spec.action.num_actions))
    if learner.policy.log_prob is not None:
        points, weights = quadrature(spec.action)
        density = jax.jit(jax.vmap(learner.policy.log_prob, (None, None, 0)))
        log_probs = density(params, single, points)
        assert log_probs.shape == weights.shape
        np.testing.assert_allclose(jnp.sum(weights * jnp.exp(log_probs)), 1.0, rtol=1e-3)


def quadrature(action: BoundedActions | DiscreteActions):
    """Points and weights that integrate a density, or sum the probabilities of all actions."""
    if isinstance(action, DiscreteActions):
        return jnp.arange(action.num_actions), jnp.ones(action.num_actions)
    assert action.size == 1
    # Midpoints of cells that are finer where squashed densities can be steep.
    edges = jnp.tanh(jnp.linspace(-9.0, 9.0, 20_001))
    return 0.5 * (edges[1:] + edges[:-1])[:, None], edges[1:] - edges[:-1]


@every_entry
def test_9b_policy_params_are_nested_dicts_so_that_they_can_be_exported(name):
    learner, _, context, state, _, _ = start(name, MAIN)
    params = learner.policy_params(state, context)
    assert jax.tree.structure(trees.unflatten(trees.flatten(params))) == jax.tree.structure(params)


@every_entry
def test_10_it_learns_the_toy_problem(name, monkeypatch):
    # Thousands of updates take longer to run than to compile.
    optimized = functools.partial(
        programs.jit, compiler_options={"xla_backend_optimization_level": 1}
    )
    monkeypatch.setattr(programs, "jit", optimized)
    algorithm, case = CASES[name]
    settings = {**case.config, "batch_size": 32, **case.learning, "num_updates": case.num_updates}
    entry = of_algorithm(algorithm, algorithm.config(**settings), problem(name).spec)
    data = problem(name).dataset
    trained = train_stages(
        entry,
        data,
        key=jax.random.key(5),
        run_stage=plain(seeds=[0, 1], block_updates=min(1_000, case.num_updates)),
        statistics=normalize.statistics(data),
    )
    learner = entry[MAIN].learner
    fresh = fit.init(learner, data, key=jax.random.key(5), seeds=[0, 1], context=trained.context)
    score = jax.jit(jax.vmap(lambda params: problem(name).score(learner.policy, params)))
    after = score(fit.policy_params(learner, trained.end.state, trained.context))
    before = score(fit.policy_params(learner, fresh, trained.context))
    assert float(jnp.min(after)) > case.score > float(jnp.max(before))


# --- configs ---


@pytest.mark.parametrize("name", CASES)
def test_every_setting_is_read(name):
    """A setting that nothing reads is a silent no-op: a config that counts its reads proves it."""
    algorithm, case = CASES[name]
    read, config = counting(algorithm.config(**case.config))
    entry = of_algorithm(algorithm, config, problem(name).spec)
    for stage_name, stage in entry.items():
        case_of_stage = stages(name)[stage_name]
        learner = stage.learner
        fit.template(
            learner, case_of_stage.dataset, key=KEY, seeds=None, context=case_of_stage.context
        )
        _, dataset, context, state, cache, batch = start(name, stage_name)
        jax.eval_shape(learner.step, state, context, batch, KEY)
        jax.eval_shape(learner.refresh, state, context, dataset, cache, jnp.int32(0), KEY)
    READ.setdefault(name.split("/")[0], set()).update(read)
    names = [other for other in CASES if other.split("/")[0] == name.split("/")[0]]
    if name == names[-1]:  # what one kind of problem does not read another does
        unread = settings_of(config, "") - READ[name.split("/")[0]]
        assert sorted(unread) == []


READ: dict[str, set[str]] = {}


def settings_of(config, prefix):
    names = set()
    for field in dataclasses.fields(config):
        value = object.__getattribute__(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= settings_of(value, f"{prefix}{field.name}.")
        else:
            names.add(f"{prefix}{field.name}")
    return names


def counting(config, prefix="", read=None):
    """(names of the settings read so far, a config of the same class that notes its reads)."""
    read = set() if read is None else read
    kind = type(config)

    def note(self, name):
        if name in kind.__dataclass_fields__:
            read.add(f"{prefix}{name}")
        return object.__getattribute__(self, name)

    counted = type(
        kind.__name__, (kind,), {"__getattribute__": note, "__module__": kind.__module__}
    )
    fields = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = counting(value, f"{prefix}{field.name}.", read)[1]
        fields[field.name] = value
    made = counted(**fields)
    return read, made


@pytest.mark.parametrize(
    ("name", "preset"), [(n, p) for n, a in registry.ALGORITHMS.items() for p in a.presets]
)
def test_every_preset_makes_a_learner(name, preset):
    algorithm = registry.ALGORITHMS[name]
    config = algorithm.config(**algorithm.presets[preset])
    assert isinstance(algorithm.make(config, problem(name).spec), Learner)


def takes(algorithm: Algorithm, action: type) -> bool:
    return any(isinstance(case.problem().spec.action, action) for case in algorithm.cases)


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_actions_of_a_kind_without_a_case_are_refused(name):
    algorithm = registry.ALGORITHMS[name]
    others = {
        DiscreteActions: toy.chain(0, num_episodes=2),
        BoundedActions: toy.bandit(0, num_steps=4),
    }
    for action, other in others.items():
        if not takes(algorithm, action):
            with pytest.raises(UsageError, match="actions"):
                algorithm.make(algorithm.config(), other.spec)


def test_an_unknown_algorithm_names_the_closest():
    with pytest.raises(UsageError, match="rosmo"):
        registry.lookup("rosmoo")


def test_a_case_is_a_record_of_the_registration():
    assert all(isinstance(case, Case) for _, case in CASES.values())
