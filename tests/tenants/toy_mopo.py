"""A toy MOPO: an ensemble stage, imagined rows with a penalty beside the dataset, SAC on both."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from offline_mbrl.data import memory, ring
from offline_mbrl.learners import sac
from offline_mbrl.models import fitting, gaussian_ensemble
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.unroll import unroll
from offline_mbrl.types import Algorithm, Transition

FIT = fitting.Config(num_updates=40, batch_size=32, refresh_every=10, final_learning_rate=1.0)


DYNAMICS = gaussian_ensemble.Config(num_members=3, hidden_layers=(16,), decay=(), fit=FIT)
POLICY = sac.Config(batch_size=32, actor_layers=(16,), critic_layers=(16,))


@dataclass(frozen=True)
class Config:
    num_updates: int = 60
    horizon: int = 3
    num_starts: int = 16
    capacity: int = 128
    penalty_coef: float = 0.5
    dynamics: gaussian_ensemble.Config = DYNAMICS
    policy: sac.Config = POLICY


def pretrain(config, spec):
    return {"model": gaussian_ensemble.stage(config.dynamics, spec)}


def make(config, spec):
    learner = sac.make(config.policy, spec)
    model = gaussian_ensemble.make(config.dynamics, spec)

    def penalize(params, observation, action, prediction, key):
        penalty = jnp.max(jnp.linalg.norm(prediction.members.std, axis=-1))
        return prediction._replace(reward=prediction.reward - config.penalty_coef * penalty)

    adjust = Adjust(apply=penalize, changes_observation=False, needs_members=True)
    rollout = unroll(model, learner.policy, horizon=config.horizon, adjust=adjust)
    starts = memory.Transitions(config.num_starts)

    def refresh(state, context, dataset, cache, update, key):
        key_starts, key_rollouts = jax.random.split(key)
        start = starts(dataset, None, key_starts).observation
        keys = jax.random.split(key_rollouts, config.num_starts)
        policy_params = learner.policy_params(state, context)
        model_params = context.upstream["model"]
        paths = jax.vmap(rollout, (None, None, 0, 0))(model_params, policy_params, start, keys)
        before, after = paths.observation[:, :-1], paths.observation[:, 1:]
        rows = Transition(before, paths.action, paths.reward, paths.discount, after)
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
        return state, ring.store(cache, rows), {"imagination/reward": jnp.mean(paths.reward)}

    def sample(dataset, cache, key):
        real = learner.sample(dataset, None, key)._replace(extras=())
        if cache is None:
            return real
        imagined = ring.sample(cache, config.policy.batch_size, jax.random.fold_in(key, 1))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), real, imagined)

    def init_cache(example):
        return ring.empty(jax.tree.map(lambda leaf: leaf[0], example), config.capacity)

    return learner._replace(sample=sample, refresh=refresh, refresh_every=20, init_cache=init_cache)


ALGORITHM = Algorithm(config=Config, make=make, pretrain=pretrain)
