"""Every registered learner, and every earlier stage of one, against the contract.

Problems and settings are the cases that stand beside each registration: a new entry is tested by
being listed.
"""

import contextlib
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import CASES, KEY, config, memoryless, problem, stage_names, stages

from offline_mbrl import export, registry
from offline_mbrl.data import normalize, trees
from offline_mbrl.training import checkpoint, fit, programs, sharding
from offline_mbrl.training.stages import MAIN, plain, train_stages
from offline_mbrl.types import (
    Actor,
    BoundedActions,
    Context,
    DiscreteActions,
)

OTHER_KEY = jax.random.key(1)


def identity(name: str, stage: str) -> tuple:
    """What a stage is made of: entries with the same model of the same data have it in common."""
    settings = config(name)
    if stage != "model" or not hasattr(settings, "dynamics"):
        return name, stage
    return CASES[name][1].problem, repr(settings.dynamics), settings.termination


def all_stages() -> list[tuple[str, str]]:
    """Each stage once, of the first entry that has it."""
    first = {}
    for name in CASES:
        for stage in stage_names(name):
            first.setdefault(identity(name, stage), (name, stage))
    return [*first.values()]


STAGES = all_stages()
every_entry = pytest.mark.parametrize("name", CASES)
every_stage = pytest.mark.parametrize(("name", "stage"), STAGES)


def over_seeds(context: Context, count: int) -> Context:
    """The same constants for `count` seeds."""
    return context._replace(
        upstream=jax.tree.map(lambda leaf: jnp.stack([leaf] * count), context.upstream)
    )


@functools.lru_cache(maxsize=1)
def programs_of(name: str) -> dict:
    """Compiled programs of the entry that is tested now, by the shapes of what they are given."""
    del name
    return {}


# Two seeds of these are trained for longer than an optimized program takes to compile.
TREE_SEARCHES = ("gumbel", "muzero_unplugged", "mzu_q")
OPTIMIZED = functools.partial(programs.jit, compiler_options={"xla_backend_optimization_level": 1})


@contextlib.contextmanager
def compiled_once(name: str):
    """Compiles a stage's programs once for a seed, for two, and for a split batch."""
    with pytest.MonkeyPatch.context() as patch:
        for compile_program in (programs._compile_block, programs._compile_refresh):
            patch.setattr(programs, compile_program.__name__, kept(compile_program, name))
        yield


def kept(compile_program, name: str):
    """The function, which compiles what was not compiled for this entry before."""
    compiled = programs_of(name)

    def compile_or_get(feed, state, context, keys, mesh):
        given = (state, context, feed.example, keys)
        identity = (
            compile_program.__name__,
            mesh,
            jax.tree.structure(given),
            tuple(jax.tree.leaves(shapes(given))),
        )
        if identity not in compiled:
            with pytest.MonkeyPatch.context() as patch:
                if keys.ndim == 2 and name in TREE_SEARCHES:
                    patch.setattr(programs, "jit", OPTIMIZED)
                compiled[identity] = compile_program(feed, state, context, keys, mesh)
        return compiled[identity]

    return compile_or_get


@functools.lru_cache(maxsize=1)
def initializer(name: str, stage: str):
    """Compiles a stage's initial state, of (dataset, keys, context)."""
    return jax.jit(functools.partial(programs.initialize, stages(name)[stage].stage.learner))


def fresh(name: str, stage: str, *, key=KEY, seeds=None, context=None) -> fit.FitState:
    """The state of a stage before its first update."""
    case = stages(name)[stage]
    keys = fit.keys_for(key, seeds)
    return initializer(name, stage)(case.dataset, keys, context or case.context)


def train(name: str, stage: str, *, key=KEY, seeds=None, learner=None, **options):
    """Blocks of two updates and of one, from the initial state where no other is given."""
    case = stages(name)[stage]
    settings = {"num_updates": 3, "block_updates": 2, "context": case.context, **options}
    if "start" not in settings:
        settings["start"] = fresh(name, stage, key=key, seeds=seeds, context=settings["context"])
    with compiled_once(name):
        return fit.fit(
            learner or case.stage.learner, case.dataset, key=key, seeds=seeds, **settings
        )


class Trained(NamedTuple):
    """A run of `train` on one device, which several tests compare with."""

    result: fit.FitResult
    # For each time the step was traced: the shapes of its state before and after, of its metrics.
    traces: list[tuple]
    states: dict  # after each block
    metrics: dict  # of each block


@functools.lru_cache(maxsize=2)
def trained(name: str, stage: str) -> Trained:
    """Trains with the step's traces counted."""
    learner = stages(name)[stage].stage.learner
    traces = []
    states = {}
    metrics = {}

    def counted(state, *arguments):
        after = learner.step(state, *arguments)
        traces.append((shapes(state), *shapes(after)))
        return after

    def keep(progress):
        states[progress.step] = jax.device_get(progress.state)
        metrics[progress.step] = progress.metrics

    programs_of(name).clear()  # traces are counted
    result = train(name, stage, learner=learner._replace(step=counted), hooks=[keep])
    return Trained(result=result, traces=traces, states=states, metrics=metrics)


def assert_close(a, b, tolerance):
    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, a, b)


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


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
    run = trained(name, stage)
    assert (run.result.num_updates, len(run.traces)) == (3, 1)


@every_stage
def test_3_state_and_cache_keep_structure_shapes_and_dtypes(name, stage):
    before, after, _ = trained(name, stage).traces[0]
    assert after == before
    case = stages(name)[stage]
    state = fresh(name, stage)
    refreshed = jax.eval_shape(
        case.stage.learner.refresh,
        state.learner,
        case.context,
        case.dataset,
        state.cache,
        jnp.int32(0),
        jax.random.key(2),
    )
    assert shapes(refreshed[0]) == shapes(state.learner)
    assert shapes(refreshed[1]) == shapes(state.cache)


@every_stage
def test_4_metrics_are_finite_scalars_with_the_same_keys(name, stage):
    run = trained(name, stage)
    _, _, metrics = run.traces[0]
    assert "loss/total" in metrics
    assert all(shape == () for shape, _ in metrics.values())
    assert list(run.metrics) == [2, 3]
    refreshes = stages(name)[stage].stage.learner.refresh_every > 0
    for values in run.metrics.values():
        assert metrics.keys() <= values.keys()
        assert refreshes or values.keys() == metrics.keys()  # a refresh has figures of its own
        assert all(np.isfinite(value) for value in values.values())


def held_out_losses(learner, dataset, state, context, key):
    """What `validate` gives on the batch of the third update, at its key."""
    key_sample, key_step = jax.random.split(jax.random.fold_in(key, 2))
    batch = learner.sample(dataset, state.cache, key_sample)
    return learner.validate(state.learner, context, batch, key_step)


@every_stage
def test_4b_held_out_losses_are_those_of_the_step_without_an_update(name, stage):
    run = trained(name, stage)
    case = stages(name)[stage]
    measure = jax.jit(functools.partial(held_out_losses, case.stage.learner))
    held_out = measure(case.dataset, run.states[2], case.context, fit.keys_for(KEY, None)[1])
    metrics = run.metrics[3]  # of the third update alone
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
    assert_close(split.state.learner, trained(name, stage).result.state.learner, 1e-3)


@every_stage
def test_7_the_key_decides_the_result(name, stage):
    first = checkpoint.sha256(trained(name, stage).result.state.learner)
    assert checkpoint.sha256(train(name, stage).state.learner) == first
    assert checkpoint.sha256(train(name, stage, key=OTHER_KEY).state.learner) != first


@every_stage
def test_8_a_checkpoint_round_trip_is_exact(name, stage, tmp_path):
    state = fresh(name, stage)
    saved = (state.learner, state.cache)
    checkpoint.save(tmp_path, 1, saved, {})
    restored = checkpoint.restore(tmp_path, saved).state
    assert checkpoint.sha256(restored) == checkpoint.sha256(saved)


@every_stage
def test_8b_resuming_equals_not_stopping_bit_for_bit(name, stage):
    run = trained(name, stage)
    assert list(run.states) == [2, 3]
    resumed = train(name, stage, start=run.states[2])
    assert resumed.num_updates == 1
    assert checkpoint.sha256(resumed.state) == checkpoint.sha256(run.result.state)


def untrained_policy(name: str):
    """The learner of the main stage, and the parameters with which it acts at first."""
    learner = stages(name)[MAIN].stage.learner
    return learner, learner.policy_params(fresh(name, MAIN).learner, stages(name)[MAIN].context)


@every_entry
def test_9_the_policy_gives_actions_inside_the_spec(name):
    learner, params = untrained_policy(name)
    dataset = stages(name)[MAIN].dataset
    spec = problem(name).spec
    observations = jax.tree.map(lambda leaf: jnp.asarray(leaf[:4]), dataset.observation)
    single = jax.tree.map(lambda leaf: leaf[0], observations)
    policy = memoryless(learner.policy)
    action = jax.jit(policy.mode)(params, single)
    sample = jax.jit(jax.vmap(policy.sample, (None, 0, 0)))
    actions = sample(params, observations, jax.random.split(jax.random.key(0), 4))
    assert actions.shape == (4, *action.shape)
    if isinstance(spec.action, BoundedActions):
        assert action.shape == (spec.action.size,)
        assert float(jnp.max(jnp.abs(actions))) <= 1.0
    else:
        assert action.shape == ()
        assert jnp.issubdtype(actions.dtype, jnp.integer)
        assert set(np.asarray(actions).tolist()) <= set(range(spec.action.num_actions))
    if policy.log_prob is not None:
        points, weights = quadrature(spec.action)
        density = jax.jit(jax.vmap(policy.log_prob, (None, None, 0)))
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
    learner, params = untrained_policy(name)
    if isinstance(learner.policy, Actor):  # of a planner: it has a model's record, see 9c
        params = {part: params[part] for part in params if part != "model"}
    assert jax.tree.structure(trees.unflatten(trees.flatten(params))) == jax.tree.structure(params)


@every_entry
def test_9c_an_exported_policy_has_the_same_params(name, tmp_path):
    _, params = untrained_policy(name)
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    about = {"algorithm": name.split("/")[0], "config": config(name), "spec": problem(name).spec}
    export.save(tmp_path, **about, params=stacked, seeds=[0])
    loaded = export.load(tmp_path).params
    assert jax.tree.structure(loaded) == jax.tree.structure(stacked)
    jax.tree.map(np.testing.assert_array_equal, loaded, stacked)


FITTED_MODEL = {}  # the last one


def shared_end(stage_identity: tuple, run):
    """How a stage ended that several entries have in common: it is trained once for all."""
    if stage_identity not in FITTED_MODEL:
        FITTED_MODEL.clear()
        FITTED_MODEL[stage_identity] = run()
    return FITTED_MODEL[stage_identity]


@every_entry
def test_10_it_learns_the_toy_problem(name):
    case = CASES[name][1]
    entry = {stage: case.stage for stage, case in stages(name).items()}
    data = problem(name).dataset
    run_plain = plain(seeds=[0, 1], block_updates=min(1_000, case.num_updates))

    def run_stage(stage_name, *arguments):
        if stage_name == MAIN:
            return run_plain(stage_name, *arguments)
        return shared_end(identity(name, stage_name), lambda: run_plain(stage_name, *arguments))

    with compiled_once(name):
        end = train_stages(
            entry,
            data,
            key=jax.random.key(5),
            run_stage=run_stage,
            statistics=normalize.statistics(data),
        )
    learner = entry[MAIN].learner
    policy = memoryless(learner.policy)
    upstream = over_seeds(stages(name)[MAIN].context, 2).upstream  # nothing is trained there
    start = end.context._replace(upstream=upstream)
    untrained = fresh(name, MAIN, key=jax.random.key(5), seeds=[0, 1], context=start)

    @jax.jit
    def score(state, context):
        params = fit.policy_params(learner, state, context)
        return jax.vmap(lambda params: problem(name).score(policy, params))(params)

    after = score(end.end.state, end.context)
    before = score(untrained, start)
    assert float(jnp.min(after)) > case.score > float(jnp.max(before))
