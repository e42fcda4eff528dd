"""A toy planner: random shooting in a learned model around the plan of the step before."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from offline_mbrl.learners import bc
from offline_mbrl.models import fitting, gaussian_ensemble
from offline_mbrl.rollouts.unroll import returns
from offline_mbrl.types import Actor, Algorithm

FIT = fitting.Config(num_updates=400, batch_size=64, refresh_every=50, final_learning_rate=1.0)


DYNAMICS = gaussian_ensemble.Config(num_members=2, hidden_layers=(32,), decay=(), fit=FIT)
POLICY = bc.Config(batch_size=32)


@dataclass(frozen=True)
class Config:
    num_updates: int = 20
    horizon: int = 5
    num_candidates: int = 64
    noise: float = 0.5
    dynamics: gaussian_ensemble.Config = DYNAMICS
    policy: bc.Config = POLICY


def pretrain(config, spec):
    return {"model": gaussian_ensemble.stage(config.dynamics, spec)}


def make(config, spec):
    learner = bc.make(config.policy, spec)
    model = gaussian_ensemble.make(config.dynamics, spec)
    # A plan as an actor: its parameters are the actions to come.
    plan = Actor(
        init=lambda actions, observation, key: actions,
        act=lambda actions, carry, observation, key: (carry[0], jnp.roll(carry, -1, axis=0)),
    )
    value = returns(model, plan, gamma=0.99, horizon=config.horizon)

    def init(params, observation, key):
        return jnp.zeros((config.horizon, spec.action.size))

    def act(params, carry, observation, key):
        key_noise, key_model = jax.random.split(key)
        shape = (config.num_candidates, *carry.shape)
        candidates = jnp.clip(
            carry[None] + config.noise * jax.random.normal(key_noise, shape), -1, 1
        )
        keys = jnp.broadcast_to(key_model, config.num_candidates)
        evaluate = jax.vmap(value, (None, 0, None, 0))
        best = candidates[
            jnp.argmax(evaluate(params["model"], candidates, observation, keys).value)
        ]
        return best[0], jnp.roll(best, -1, axis=0).at[-1].set(0.0)

    def policy_params(state, context):
        return {
            "behavior": learner.policy_params(state, context),
            "model": context.upstream["model"],
        }

    actor = Actor(init=init, act=act)
    return learner._replace(policy=actor, policy_params=policy_params)


ALGORITHM = Algorithm(config=Config, make=make, pretrain=pretrain)
