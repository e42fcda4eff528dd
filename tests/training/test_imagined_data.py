"""Imagined data beside the dataset: the cache of a learner, through blocks, freezes and resume."""

import jax
import jax.numpy as jnp
import linear_learner
import numpy as np

from offline_mbrl.training import feeding, programs
from offline_mbrl.training.checkpoint import sha256
from offline_mbrl.training.fit import cache_bytes, fit, init, keys_for, template, validation
from offline_mbrl.types import Context

KEY = jax.random.key(7)
DATA = linear_learner.dataset()
ROWS = 32
REAL = linear_learner.make(batch_size=8)


def sample(dataset, cache, key):
    """Eight real rows, and, where there is a cache, eight of its rows."""
    key_real, key_imagined = jax.random.split(key)
    real = REAL.sample(dataset, None, key_real)
    if cache is None:
        return real
    rows = jax.random.randint(key_imagined, (8,), 0, ROWS)
    imagined = jax.tree.map(lambda leaf: leaf[rows], cache)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), real, imagined)


def init_cache(example):
    return jax.tree.map(lambda leaf: jnp.zeros((ROWS, *leaf.shape[1:]), leaf.dtype), example)


def refresh(state, context, dataset, cache, update, key):
    """Overwrites a quarter of the rows, in turn: older rows are still those of earlier
    refreshes."""
    del context
    keys = jax.random.split(key, ROWS)
    imagined = jax.vmap(lambda key: jax.tree.map(lambda x: x[0], REAL.sample(dataset, None, key)))(
        keys
    )
    imagined = imagined._replace(reward=imagined.observation @ state.params["w"] + 10.0)
    position = (update // 10) % 4
    written = jnp.arange(ROWS) // (ROWS // 4) == position

    def overwrite(old, new):
        return jnp.where(written.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    cache = jax.tree.map(overwrite, cache, imagined)
    return (
        state,
        cache,
        {"imagination/update": update, "imagination/reward": jnp.mean(cache.reward)},
    )


def learner(**fields):
    fields = {
        "sample": sample,
        "init_cache": init_cache,
        "refresh": refresh,
        "refresh_every": 10,
        **fields,
    }
    return linear_learner.make(**fields)


def run(model=None, **options):
    settings = {"key": KEY, "num_updates": 50, "block_updates": 20, "seeds": [3, 5], **options}
    return fit(model or learner(), DATA, **settings)


def test_refresh_sees_the_number_of_the_update_and_its_metrics_are_reported():
    rows = []
    run(hooks=[lambda progress: rows.append(progress.metrics)])
    np.testing.assert_array_equal(
        [row["imagination/update"] for row in rows], [[t, t] for t in range(0, 50, 10)]
    )
    assert all(np.isfinite(row["imagination/reward"]).all() for row in rows)


def test_resuming_is_bit_exact_although_old_rows_stay_in_the_cache():
    saved = {}
    whole = run(
        hooks=[lambda progress: saved.update({progress.step: jax.device_get(progress.state)})]
    )
    assert list(saved) == [10, 20, 30, 40, 50]
    for state in saved.values():
        resumed = run(start=state, block_updates=7)
        assert sha256(resumed.state) == sha256(whole.state)


def test_held_out_losses_never_see_imagined_rows():
    sizes = []

    def validate(state, context, batch, key):
        sizes.append(batch.reward.shape)
        return {"reward": jnp.max(batch.reward)}

    model = learner(validate=validate)
    figures = validation(model, DATA, key=KEY, num_batches=3)(run(model).state)
    assert set(sizes) == {(8,)}
    assert (figures["reward"] <= np.max(DATA.reward)).all()


def test_a_cache_that_is_not_finite_is_no_failure_of_the_state():
    def spoil(state, context, dataset, cache, update, key):
        state, cache, metrics = refresh(state, context, dataset, cache, update, key)
        return state, cache._replace(action=jnp.full_like(cache.action, jnp.nan)), metrics

    assert not run(learner(refresh=spoil)).failures  # the loss reads no action


def test_a_block_does_not_hold_the_cache_twice():
    rows = 200_000

    def big_cache(example):
        return jax.tree.map(lambda leaf: jnp.zeros((rows, *leaf.shape[1:]), leaf.dtype), example)

    model = learner(init_cache=big_cache, refresh_every=0)
    state = init(model, DATA, key=KEY, seeds=[0, 1])
    feed = feeding.make(model, DATA, keys_for(KEY, [0, 1])[..., 1], None)
    keys = keys_for(KEY, [0, 1])
    block = programs._compile_block(feed, state, Context(), keys, None)
    analysis = block.memory_analysis()
    size = cache_bytes(state)
    assert analysis.argument_size_in_bytes >= size
    assert analysis.temp_size_in_bytes < 0.1 * size
    assert analysis.output_size_in_bytes < 0.1 * size


def test_the_memory_of_the_cache_is_known_before_a_run():
    shapes = template(learner(), DATA, key=KEY, seeds=[0, 1, 2])
    row_bytes = 4 * (3 + 1 + 1 + 1 + 3)  # observation, action, reward, discount, next observation
    assert cache_bytes(shapes) == 3 * ROWS * row_bytes
