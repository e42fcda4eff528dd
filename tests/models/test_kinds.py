"""A config chooses its model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explicit_examples import ACTION, STATE, D, linear, spec, transition

from offline_mbrl import config_json
from offline_mbrl.models import fitting, kinds, scores
from offline_mbrl.training import stages
from offline_mbrl.types import ModelParams, UsageError

KEY = jax.random.key(0)
FIT = fitting.Config(num_updates=41, batch_size=32, refresh_every=20)
CONFIGS = {
    "feedforward": kinds.FeedforwardConfig(hidden_layers=(8,), num_members=2, fit=FIT),
    "autoregressive": kinds.MaskedConfig(hidden_size=16, num_blocks=1, num_members=2, fit=FIT),
    "autoregressive_shared": kinds.SharedConfig(hidden_layers=(8,), num_members=2, fit=FIT),
    "coupled": kinds.CoupledConfig(hidden_layers=(8,), reward_layers=(8,), num_members=2, fit=FIT),
    "gaussian_ensemble": kinds.GaussianEnsembleConfig(
        hidden_layers=(8,), decay=(), num_members=2, fit=FIT
    ),
}


def test_every_kind_is_here():
    assert set(CONFIGS) == set(kinds.KINDS)
    configs = [kind.config for kind in kinds.KINDS.values()]
    assert set(configs) == set(kinds.ModelConfig.__args__)
    assert len({config.__name__ for config in configs}) == len(configs)  # a union tells them apart


@pytest.mark.parametrize("name", CONFIGS)
def test_the_class_of_a_config_chooses_the_model(name):
    config = CONFIGS[name]
    kind = kinds.KINDS[name]
    assert kinds.kind_of(config) is kind
    model = kinds.make(config, spec())
    params = model.init(KEY, linear()[1])
    own = kind.density(config, STATE, ACTION).init(KEY)
    members = params.network["members"]
    jax.tree.map(
        lambda leaf, one: np.testing.assert_equal(leaf.shape, (2, *one.shape)), members, own
    )
    row = transition()
    _, prediction = model.step(params, row.observation, row.action, KEY)
    assert prediction.members.mean.shape == (2, D)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_kind_is_a_stage_that_hands_on_its_parameters(name):
    dataset = linear()[0]
    whole = dataset._replace(starts=np.concatenate([dataset.starts, dataset.held_out]), held_out=())
    config = CONFIGS[name]
    end = stages.train_stages(
        {"model": kinds.stage(config, spec())},
        whole,
        key=KEY,
        run_stage=stages.plain(seeds=None, block_updates=20),
    )
    params = end.upstream["model"]
    assert isinstance(params, ModelParams)
    assert np.all(np.isfinite(end.end.state.learner.best_score))
    model = kinds.make(config, spec())
    row = transition()
    _, prediction = model.step(params, row.observation, row.action, KEY)
    assert np.all(np.isfinite(prediction.observation))


@dataclasses.dataclass(frozen=True)
class Holder:
    """Of a model, as an algorithm's config is."""

    dynamics: kinds.ModelConfig


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_written_and_read_as_exports_and_runs_do(name):
    holder = Holder(dynamics=CONFIGS[name])
    text = json.dumps(config_json.to_json(holder))
    assert config_json.from_json(Holder, json.loads(text)) == holder


def test_an_ensemble_is_judged_by_errors_and_a_density_by_its_likelihood():
    error = kinds.KINDS["gaussian_ensemble"].score(CONFIGS["gaussian_ensemble"])
    likelihood = kinds.KINDS["feedforward"].score(CONFIGS["feedforward"])
    best = jnp.ones(1)
    slightly_better = jnp.array([0.995])
    assert not error.improved(slightly_better, best)
    assert likelihood.improved(slightly_better, best)
    last = dataclasses.replace(CONFIGS["gaussian_ensemble"], keep="last")
    assert kinds.KINDS["gaussian_ensemble"].score(last).improved(2 * best, best)
    assert isinstance(error, scores.Score)


def test_another_config_is_refused():
    with pytest.raises(UsageError, match="Config is not the config of an explicit model"):
        kinds.make(fitting.Config(), spec())
