import jax
import jax.numpy as jnp
import linear_learner
import numpy as np
import pytest

from offline_mbrl.training import blocks
from offline_mbrl.training.checkpoint import sha256
from offline_mbrl.training.fit import (
    FitState,
    fit,
    init,
    keys_for,
    policy_params,
    template,
    validation,
)
from offline_mbrl.types import Context

KEY = jax.random.key(7)
DATA = linear_learner.dataset()


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory):
    """Most tests here compile the same program: the persistent cache makes them fast."""
    with linear_learner.compilation_cache(tmp_path_factory.getbasetemp() / "xla"):
        yield


def run(learner=None, **options):
    settings = {"key": KEY, "num_updates": 50, "block_updates": 20, "seeds": [3, 5, 7], **options}
    return fit(learner or linear_learner.make(), DATA, **settings)


def seed_of(state, index):
    return jax.tree.map(lambda leaf: leaf[index], state.learner)


# --- blocks ---


@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_step_and_refresh_are_traced_once_whatever_the_blocks(seeds):
    traces = []

    def step(*arguments):
        traces.append("step")
        return linear_learner.step(*arguments)

    def refresh(*arguments):
        traces.append("refresh")
        return linear_learner.refresh(*arguments)

    learner = linear_learner.make(step=step, refresh=refresh, refresh_every=15)
    lengths = []
    run(
        learner,
        seeds=seeds,
        num_updates=47,
        hooks=[lambda progress: lengths.append(progress.num_updates)],
    )
    assert lengths == [15, 5, 10, 10, 5, 2]
    assert sorted(traces) == ["refresh", "step"]


def test_metrics_are_the_mean_over_the_block():
    rows = []
    run(hooks=[lambda progress: rows.append((progress.step, progress.metrics["count"]))])
    assert [step for step, _ in rows] == [20, 40, 50]
    np.testing.assert_allclose([count for _, count in rows], [[9.5] * 3, [29.5] * 3, [44.5] * 3])


def test_the_loop_equals_updates_written_out():
    learner, data = linear_learner.make(), jax.device_put(DATA)
    keys = keys_for(KEY, None)
    state = init(learner, data, key=KEY).learner
    for t in range(5):
        state, _ = blocks.update(
            learner, state, Context(), data, (), jax.random.fold_in(keys[1], t)
        )
    result = run(seeds=None, num_updates=5, block_updates=3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result.state.learner, state
    )
    assert int(result.state.step) == 5


def test_refresh_happens_before_the_updates_at_each_of_its_multiples():
    learner = linear_learner.make(refresh=linear_learner.refresh, refresh_every=15)
    state = run(learner).state
    np.testing.assert_array_equal(state.learner.refreshed[0], [0, 15, 30, 45, -1, -1, -1, -1])


def test_each_refresh_has_its_own_randomness():
    def idle(state, context, batch, key):
        del context, batch, key
        return state, {"count": state.count}

    learner = linear_learner.make(step=idle, refresh=linear_learner.refresh, refresh_every=10)
    seen = []
    run(
        learner,
        num_updates=30,
        hooks=[lambda p: seen.append(np.array(p.state.learner.params["w"]))],
    )
    assert (np.abs((seen[1] - seen[0]) - (seen[2] - seen[1])) > 1e-5).any(axis=1).all()


def test_a_measured_block_is_a_round_number_and_the_result_does_not_depend_on_it():
    lengths = []
    measured = run(
        block_updates=None, block_seconds=0.01, hooks=[lambda p: lengths.append(p.block_updates)]
    )
    assert measured.block_updates in {size * 10**power for size in (1, 2, 5) for power in range(7)}
    assert set(lengths) == {measured.block_updates}
    assert sha256(measured.state) == sha256(run().state)


# --- randomness and resuming ---


@pytest.mark.parametrize("refresh_every", [0, 15])
def test_resuming_after_any_block_equals_not_stopping_bit_for_bit(refresh_every):
    learner = linear_learner.make(refresh=linear_learner.refresh, refresh_every=refresh_every)
    saved = {}
    whole = run(
        learner,
        hooks=[lambda progress: saved.update({progress.step: jax.device_get(progress.state)})],
    )
    assert list(saved) == ([15, 20, 30, 40, 45, 50] if refresh_every else [20, 40, 50])
    for step, state in saved.items():
        resumed = run(learner, start=state, block_updates=7)
        assert resumed.num_updates == 50 - step
        assert sha256(resumed.state) == sha256(whole.state)


def test_another_key_or_seed_gives_another_result():
    digests = {
        sha256(run(**options).state)
        for options in ({}, {"key": jax.random.key(8)}, {"seeds": [3, 5, 8]})
    }
    assert len(digests) == 3
    assert sha256(run().state) == sha256(run().state)


def test_vmap_over_seeds_equals_the_loop_over_seeds():
    together = run().state
    for index, seed in enumerate([3, 5, 7]):
        alone = run(seeds=[seed]).state
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            seed_of(together, index),
            seed_of(alone, 0),
        )


def test_the_start_is_copied_not_consumed():
    start = run(num_updates=10).state
    shared = jnp.zeros(3)
    start = start._replace(
        learner=start.learner._replace(params={"w": start.learner.params["w"], "b": shared})
    )
    start = start._replace(
        learner=start.learner._replace(
            opt_state=jax.tree.map(
                lambda leaf: shared if leaf.shape == (3,) and leaf.dtype == shared.dtype else leaf,
                start.learner.opt_state,
            )
        )
    )
    before = sha256(start)
    run(start=start)
    assert sha256(start) == before


def test_the_template_has_the_shapes_of_the_state():
    shapes = template(linear_learner.make(), DATA, key=KEY, seeds=[1, 2])
    state = run(seeds=[1, 2], num_updates=1).state
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


# --- stages ---


def test_what_a_stage_hands_on_arrives_seed_by_seed():
    learner = linear_learner.make()
    first = run(learner)
    params = policy_params(learner, first.state)
    second = run(learner, context=Context(upstream={"params": params}), num_updates=1)
    third = run(learner, context=Context(upstream={"params": params}), num_updates=1, start=None)
    moved = np.abs(second.state.learner.params["w"] - params["w"])
    assert (moved <= 0.011).all()  # one step of Adam moves a parameter by its learning rate
    assert moved.max() > 0
    assert sha256(second.state) == sha256(third.state)
    alone = run(learner, seeds=None)
    assert policy_params(learner, alone.state)["w"].shape == (3,)


# --- failures ---


def explode(*updates):
    return Context(upstream={"explode_at": jnp.asarray(updates)})


def test_a_failing_seed_is_frozen_and_the_others_do_not_notice():
    never = linear_learner.UNTIL_NEVER
    rows = []
    healthy = run(context=explode(never, never, never), num_updates=60)
    result = run(
        context=explode(never, 30, never),
        num_updates=60,
        hooks=[lambda p: rows.append(p.metrics["count"])],
    )
    assert result.failures == {
        5: "loss/value became non-finite at update 31 (between updates 20 and 40)"
    }
    assert result.stopped is None
    np.testing.assert_array_equal(result.state.alive, [True, False, True])
    for index in (0, 2):
        ignored = {"explode_at": jnp.zeros(())}
        assert sha256(seed_of(result.state, index)._replace(**ignored)) == sha256(
            seed_of(healthy.state, index)._replace(**ignored)
        )
    assert int(seed_of(result.state, 1).count) == 20  # put back to the start of the block
    np.testing.assert_array_equal(
        np.isnan(rows), [[False] * 3, [False, True, False], [False, True, False]]
    )
    assert np.isfinite(result.state.learner.params["w"]).all()


@pytest.mark.parametrize("seeds", [None, [3, 5, 7]])
def test_when_all_seeds_failed_the_run_stops_within_the_block_and_names_the_metric(seeds):
    calls = []
    context = explode(2, 2, 25) if seeds else Context(upstream={"explode_at": jnp.asarray(25)})
    result = run(
        seeds=seeds,
        context=context,
        num_updates=1000,
        hooks=[lambda progress: calls.append(progress.step)],
    )
    assert calls == [20, 40]
    assert "loss/value became non-finite at update 26" in (result.stopped or "")
    assert len(result.failures) == (3 if seeds else 1)
    assert np.isfinite(result.state.learner.params["w"]).all()


def test_a_run_whose_seeds_are_all_frozen_does_not_go_on():
    failed = run(context=explode(1, 1, 1))
    calls = []
    again = run(
        start=failed.state,
        num_updates=1000,
        failures=failed.failures,
        hooks=[lambda p: calls.append(p.step)],
    )
    assert again.num_updates == 0
    assert not calls
    assert "loss/value" in (again.stopped or "")
    assert "seed 3" in (run(start=failed.state, num_updates=1000).stopped or "")


def test_a_non_finite_parameter_is_found_although_the_metrics_are_finite():
    def step(state, context, batch, key):
        after, metrics = linear_learner.step(state, context, batch, key)
        return after, {"count": metrics["count"]}

    result = run(linear_learner.make(step=step), context=explode(19, 999, 999), num_updates=20)
    assert result.failures == {3: "state.params['b'] became non-finite between updates 0 and 20"}


def test_a_non_finite_refresh_is_undone_and_named():
    def refresh(state, context, data, cache, update, key):
        after, cache, metrics = linear_learner.refresh(state, context, data, cache, update, key)
        w = jnp.where(state.count > 20, jnp.nan, after.params["w"])
        return after._replace(params={**after.params, "w": w}), cache, metrics

    result = run(linear_learner.make(refresh=refresh, refresh_every=15))
    assert (
        result.failures[5] == "state.params['w'] became non-finite in the refresh after update 30"
    )
    assert np.isfinite(result.state.learner.params["w"]).all()


def test_an_infinity_that_was_there_before_is_no_failure():
    assert np.isinf(run().state.learner.best).all()
    assert not run().failures


# --- hooks, figures, validation ---


def test_every_hook_is_called_and_the_first_reason_stops_the_run():
    calls = []
    hooks = [
        lambda progress: "enough" if progress.step >= 40 else None,
        lambda progress: calls.append(progress.step),
        lambda progress: "too late" if progress.step >= 40 else None,
    ]
    result = run(hooks=hooks, num_updates=1000)
    assert result.stopped == "enough"
    assert calls == [20, 40]
    assert int(result.state.step) == result.num_updates == 40


def test_compilation_is_reported_apart_and_flops_grow_with_the_seeds():
    seconds = []
    one, four = (
        run(seeds=seeds, hooks=[lambda p: seconds.append(p.seconds)])
        for seeds in ([0], [0, 1, 2, 3])
    )
    assert one.compile_seconds > 0
    assert sum(seconds) == pytest.approx(one.update_seconds + four.update_seconds)
    assert four.flops_per_update is not None
    assert one.flops_per_update is not None
    assert 2.5 < four.flops_per_update / one.flops_per_update < 4.5


def test_validation_is_the_mean_of_the_loss_on_held_out_batches_and_changes_nothing():
    learner = linear_learner.make()
    result = run(learner, context=explode(999, 5, 999))
    before = sha256(result.state)
    measure = validation(learner, DATA, key=KEY, num_batches=4)
    figures = measure(result.state)
    assert sha256(result.state) == before
    np.testing.assert_array_equal(np.isnan(figures["loss/value"]), [False, True, False])
    state, data = seed_of(result.state, 2), jax.device_put(DATA)
    single = []
    for key in jax.random.split(KEY, 4):
        key_sample, key_loss = jax.random.split(key)
        batch = learner.sample(data, None, key_sample)
        single.append(linear_learner.loss(state.params, batch, key_loss))
    np.testing.assert_allclose(figures["loss/value"][2], np.mean(single), rtol=1e-5)


def test_a_fit_state_is_a_plain_tree():
    state = run(num_updates=1).state
    assert isinstance(state, FitState)
    assert state.alive.shape == (3,)
    assert state.step.shape == ()
