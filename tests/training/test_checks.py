"""Mistakes of a newcomer, each refused in words that say what to do."""

import jax
import jax.numpy as jnp
import linear_learner
import numpy as np
import pytest

from offline_mbrl.training.fit import fit
from offline_mbrl.types import Context, UsageError

DATA = linear_learner.dataset()
STEP = linear_learner.step


def run(learner=None, dataset=DATA, **options):
    settings = {"key": jax.random.key(0), "num_updates": 4, "block_updates": 2, **options}
    return fit(learner or linear_learner.make(), dataset, **settings)


def assert_refused(message, learner=None, **options):
    with pytest.raises(UsageError, match=message):
        run(learner, **options)


# --- arguments ---


def test_a_learner_that_was_never_built_is_refused():
    assert_refused(r"learner is the module|learner is a module", linear_learner)


def test_the_name_of_a_dataset_is_not_a_dataset():
    assert_refused(r"dataset is the name 'local/catch': load it first", dataset="local/catch")


def test_a_loaded_dataset_is_not_yet_the_dataset():
    class Loaded:
        dataset = DATA

    assert_refused(r"pass its field `\.dataset`", dataset=Loaded())


def test_a_dict_of_arrays_is_not_yet_a_dataset():
    assert_refused(r"Dataset\.from_arrays", dataset={"observation": np.zeros((4, 3))})


def test_a_number_is_not_a_key():
    assert_refused(r"key is an int: pass a random key", key=0)


def test_a_number_of_seeds_is_not_their_list():
    assert_refused(r"seeds is the number 3: pass the seeds themselves", seeds=3)


@pytest.mark.parametrize("num_updates", [0, -1, 1e3, True])
def test_updates_are_a_whole_number(num_updates):
    assert_refused(r"num_updates must be a whole number of at least 1", num_updates=num_updates)


def test_statistics_are_not_yet_a_context():
    assert_refused(r"context is a dict: pass `Context", context={"mean": 0.0})


def test_one_hook_is_not_a_list_of_hooks():
    assert_refused(r"hooks is a single function", hooks=lambda progress: None)


def test_an_upstream_without_an_axis_of_seeds_is_refused():
    upstream = {"model": {"w": jnp.zeros(3)}}
    assert_refused(
        r"model/w has shape \(3,\): stack it", seeds=[0, 1], context=Context(upstream=upstream)
    )


# --- functions ---


def test_a_function_with_other_arguments_is_refused_before_anything_is_traced():
    def step(state, batch, key):
        return state, {}

    assert_refused(
        r"learner\.step takes \(state, context, batch, key\)", linear_learner.make(step=step)
    )


def test_a_step_that_returns_the_state_alone_is_refused():
    def step(*arguments):
        return STEP(*arguments)[0]

    assert_refused(
        r"step must return \(state, metrics\), but it returned a State",
        linear_learner.make(step=step),
    )


def test_metrics_are_a_dict_of_scalars():
    def step_with_number(*arguments):
        state, metrics = STEP(*arguments)
        return state, metrics["loss/value"]

    def step_with_vector(*arguments):
        state, _ = STEP(*arguments)
        return state, {"loss": jnp.zeros(16)}

    assert_refused(r"dict of scalars by name", linear_learner.make(step=step_with_number))
    assert_refused(
        r"'loss' must be a scalar, but it has shape \(16,\)",
        linear_learner.make(step=step_with_vector),
    )


def test_a_state_keeps_its_shapes_and_dtypes():
    def step(*arguments):
        state, metrics = STEP(*arguments)
        return state._replace(count=state.count * 1.0), metrics

    assert_refused(
        r"state\.count was int32\[\] and became float32\[\]", linear_learner.make(step=step)
    )


def test_a_state_keeps_its_structure():
    def step(*arguments):
        state, metrics = STEP(*arguments)
        return state._replace(params={"w": state.params["w"]}), metrics

    assert_refused(
        r"state\.params\['b'\] was float32\[\] and became absent", linear_learner.make(step=step)
    )


def test_a_state_of_python_numbers_is_refused():
    def init(*arguments):
        return linear_learner.init(*arguments)._replace(best=0.5)

    assert_refused(
        r"init returned a float at \.best, where an array is needed", linear_learner.make(init=init)
    )


def test_python_control_flow_on_a_traced_value_is_refused():
    def step(state, context, batch, key):
        if batch.reward.sum() > 0:
            return STEP(state, context, batch, key)
        return state, {}

    assert_refused(r"learner\.step cannot be compiled: .* use jnp", linear_learner.make(step=step))


def test_numpy_on_a_traced_value_is_refused():
    def step(state, context, batch, key):
        return state, {"loss": jnp.asarray(np.mean(np.asarray(batch.reward)))}

    assert_refused(r"learner\.step cannot be compiled", linear_learner.make(step=step))


def test_a_batch_without_arrays_is_refused():
    assert_refused(
        r"sample returned None without arrays", linear_learner.make(sample=lambda *arguments: None)
    )


def test_a_refresh_returns_state_cache_and_metrics():
    def refresh(state, context, dataset, cache, update, key):
        return state

    learner = linear_learner.make(refresh=refresh, refresh_every=2)
    assert_refused(
        r"refresh must return \(state, cache, metrics\), but it returned a State", learner
    )


def test_a_cache_keeps_its_shapes():
    def refresh(state, context, dataset, cache, update, key):
        return state, jnp.zeros(5), {}

    learner = linear_learner.make(
        refresh=refresh, refresh_every=2, init_cache=lambda example: jnp.zeros(4)
    )
    assert_refused(r"cache was float32\[4\] and became float32\[5\]", learner)


def test_the_linear_learner_passes():
    assert run().stopped is None
