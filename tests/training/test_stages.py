"""Stages: each with its data, statistics, length and rule, and what it hands on."""

import jax
import jax.numpy as jnp
import linear_learner
import numpy as np
import pytest

from offline_mbrl.data import normalize, splits
from offline_mbrl.training.checkpoint import sha256
from offline_mbrl.training.fit import fit
from offline_mbrl.training.stages import MAIN, ending_rule, key_of, plain, train_stages
from offline_mbrl.types import Context, Stage

KEY = jax.random.key(3)
DATA = linear_learner.dataset(256)


def stop_at(step):
    return lambda progress: f"enough at {progress.step}" if progress.step >= step else None


def train(stages, **options):
    settings = {"seeds": [0, 1], "block_updates": 5, **options}
    return train_stages(stages, DATA, key=KEY, run_stage=plain(**settings))


def test_a_stage_sees_its_own_split_and_statistics_of_what_it_sees():
    seen = {}
    learner = linear_learner.make()

    def init(key, example, context):
        seen["mean"] = context.statistics.mean
        return linear_learner.init(key, example, context)

    def prepare(dataset):
        seen["dataset"] = splits.hold_out(dataset, fraction=0.25, seed=0)
        return seen["dataset"]

    stage = Stage(
        learner=learner._replace(init=init),
        num_updates=5,
        prepare=prepare,
        statistics=normalize.statistics,
    )
    train({MAIN: stage})
    assert len(seen["dataset"].starts) < len(DATA.starts)
    assert seen["mean"].shape == (3,)


def test_a_stage_that_its_own_rule_ends_is_finished_and_hands_on():
    model = Stage(linear_learner.make(), num_updates=100, hooks=(stop_at(10),))
    main = Stage(linear_learner.make(), num_updates=20)
    trained = train({"params": model, MAIN: main})
    assert trained.name == MAIN
    assert trained.end.stopped is None
    assert int(trained.end.state.step) == 20
    assert trained.upstream["params"]["w"].shape == (2, 3)


def test_a_hook_of_the_caller_leaves_a_stage_unfinished():
    stages = {"params": Stage(linear_learner.make(), 100), MAIN: Stage(linear_learner.make(), 20)}
    trained = train(stages, hooks=lambda name: [stop_at(10)])
    assert (trained.name, trained.end.stopped) == ("params", "enough at 10")
    assert MAIN not in trained.upstream


def test_a_stage_whose_seeds_all_fail_is_not_finished():
    def step(state, context, batch, key):
        state, metrics = linear_learner.step(state, context, batch, key)
        return state, metrics | {"loss/value": jnp.nan * metrics["loss/value"]}

    stages = {"a": Stage(linear_learner.make(step=step), 10), MAIN: Stage(linear_learner.make(), 5)}
    trained = train(stages)
    assert trained.name == "a"
    assert "all seeds became non-finite" in (trained.end.stopped or "")
    assert "stage a" in trained.failures[0]


def test_outputs_are_what_the_stage_says_with_an_axis_of_seeds():
    stage = Stage(
        linear_learner.make(), 5, outputs=lambda state, context: {"twice": 2 * state.params["w"]}
    )
    trained = train({"model": stage, MAIN: stage})
    np.testing.assert_array_equal(
        trained.upstream[MAIN]["twice"], 2 * trained.end.state.learner.params["w"]
    )


def test_a_stage_may_hand_on_a_dataset_that_all_seeds_share():
    def hand_on(dataset, outputs, key):
        assert outputs["w"].shape == (2, 3)
        return dataset._replace(reward=dataset.reward + 100.0)

    seen = []

    def sample(dataset, cache, key):
        seen.append(dataset.reward.shape)
        return linear_learner.make().sample(dataset, cache, key)

    def validate(state, context, batch, key):
        return {"reward": jnp.min(batch.reward)}

    model = Stage(linear_learner.make(), 5, hand_on_dataset=hand_on)
    main = Stage(linear_learner.make(sample=sample), 200)
    bias = train({"params": model, MAIN: main}).end.state.learner.params["b"]
    plain_bias = train({"params": model._replace(hand_on_dataset=None), MAIN: main})
    assert (bias > plain_bias.end.state.learner.params["b"] + 1.0).all()
    assert set(seen) == {DATA.reward.shape}  # no axis of seeds


def test_stages_are_fits_with_keys_of_their_own():
    stage = Stage(linear_learner.make(), 7)
    trained = train({MAIN: stage})
    alone = fit(
        stage.learner, DATA, key=key_of(KEY, MAIN), num_updates=7, seeds=[0, 1], block_updates=5
    )
    assert sha256(trained.end.state) == sha256(alone.state)


@pytest.mark.parametrize("hooks", [(), (lambda progress: None,)])
def test_a_rule_without_a_reason_ends_nothing(hooks):
    rule, reason = ending_rule(hooks)
    assert rule(None) is None
    assert reason() is None


def test_the_context_of_a_stage_holds_all_that_came_before():
    seen = {}

    def init(key, example, context):
        seen.update(context.upstream)
        return linear_learner.init(key, example, Context())

    stage = Stage(linear_learner.make(), 2)
    train({"a": stage, "b": stage, MAIN: Stage(linear_learner.make(init=init), 2)})
    assert sorted(seen) == ["a", "b"]
