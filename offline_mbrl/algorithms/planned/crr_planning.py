"""CRR with planning (arXiv:2104.13877): critic regularized regression, and a planner that acts.

The policy and its critic learn as in `crr`, beside a model that is fitted first and changes nothing
in them. To act, N candidates follow the policy through the model for H steps, and the critic says
what comes after:

    G_i = sum_{t<H} gamma^t r_t + gamma^H min_j Q_j(s_H, a_H)
    w = softmax(G / (temperature std(G))),    a = sum_i w_i a_0^i

Greedily the weighted mean acts, else one of the candidates' first actions, drawn by its weight.
Members of an ensemble take turns with the candidates, each for its whole length. H = 0 is CRR's
critic-weighted policy (arXiv:2006.15134, section 4); a budget of 0 model steps is CRR itself.

Departures: N, H, the temperature in units of the returns' deviation and the discount of predicted
ends are ours. The planner adds the model's rewards to the critic's values, so that the critic has
to see observations and rewards as the data have them: `policy.inputs` stays at its defaults.

Choose these settings by held-out data or off-policy evaluation, not by returns in the simulator.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from offline_mbrl import policies, settings
from offline_mbrl.algorithms.planned import assembly
from offline_mbrl.learners import crr
from offline_mbrl.learners.parts.preprocessing import InputConfig
from offline_mbrl.models import autoregressive, gaussian_ensemble
from offline_mbrl.planning import improve, path_integral
from offline_mbrl.planning.shooting import Tail
from offline_mbrl.settings import above, at_least
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    PyTree,
    UsageError,
)

pretrain = assembly.pretrain


@dataclass(frozen=True)
class Config(assembly.Config):
    """CRR's settings, and ours of the planner."""

    policy: crr.Config = field(default_factory=crr.Config)
    horizon: Annotated[int, at_least(0)] = 5  # H, model steps of a candidate
    num_candidates: Annotated[int, at_least(1)] = 64  # N
    num_particles: Annotated[int, at_least(1)] = 1  # of each candidate, from its first action on
    noise: Annotated[float, at_least(0)] = 0.0  # deviation of noise on the candidates' actions
    temperature: Annotated[float, above(0)] = 1.0  # in deviations of the candidates' values


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "feedforward": {},
    "autoregressive": {"dynamics": autoregressive.MaskedConfig()},  # the paper's comparison
    "autoregressive_shared": {"dynamics": autoregressive.SharedConfig()},
    "gaussian_ensemble": {"dynamics": gaussian_ensemble.Config()},
    "rl_unplugged": {
        "dynamics": autoregressive.MaskedConfig(),
        "policy": crr.Config(**crr.PRESETS["rl_unplugged"]),
    },
}


def critic_tail(config: crr.Config, spec: EnvironmentSpec) -> Tail:
    """The least of the critics, of the planner's parameters "critic".

    Raises:
      UsageError: the actions are discrete.
    """
    critic = crr.critic(config, spec)

    def tail(params: Params, observation: Observation, action: Action, key: Key) -> Array:
        del key  # deterministic
        alone = jax.tree.map(lambda leaf: leaf[None], observation)
        return jnp.min(critic.q(params["critic"], alone, action[None]))

    return tail


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner; its policy is an `Actor`.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "crr_planning", spec)
    if astuple(config.policy.inputs) != astuple(InputConfig()):
        raise UsageError(
            "crr_planning: policy.inputs changes what the critic sees, but the planner shows it "
            "the model's observations and adds the model's rewards: leave it at its defaults"
        )
    learner = crr.make(replace(config.policy, num_updates=config.num_updates), spec)
    task = assembly.task(
        config,
        spec,
        policies.require_memoryless(learner.policy, "crr_planning"),
        horizon=config.horizon,
        gamma=config.policy.gamma,
        num_particles=config.num_particles,
        tail=critic_tail(config.policy, spec),
    )
    actor = path_integral.mppi(
        task,
        path_integral.along_policy(task, noise=config.noise),
        improve.relative(improve.exponential(config.temperature)),
        num_candidates=config.num_candidates,
        budget=config.budget,
    )

    def policy_params(state: PyTree, context: Context) -> Params:
        return {
            "policy": learner.policy_params(state, context),
            "model": context.upstream["model"],
            "critic": state.critic,
        }

    return learner._replace(policy=actor, policy_params=policy_params)
