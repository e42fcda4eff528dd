"""Conservative Q-learning, CQL(H) (arXiv:2006.04779), on soft actor-critic.

Critics also descend a soft maximum of their values over sampled actions minus their value at the
data's action. The weight of that term is fixed, or learned until the two differ by a target gap.

Departures: the released code's squared errors lack the 1/2 of the paper's equation, so its weights
stand halved here; all losses of an update are taken at the parameters before it; weights start as
those of `torsos.MLP` rather than orthogonal. Of public code it does not take over: a soft maximum
over the three groups of actions rather than over the 30 actions of a state (a reshape whose result
was dropped), critics at sampled actions under a stopped gradient, a soft maximum without importance
weights or over critics and actions at once, and a policy that samples at evaluation.

The conservative term is a regularizer of its own (`conservative.regularizer`), for any method of
`actor_critic` and for batches of which only some rows count.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.learners.parts import actor_critic, candidates, conservative
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent, Method
from offline_mbrl.learners.parts.preprocessing import InputConfig, with_inputs
from offline_mbrl.settings import at_least, sizes
from offline_mbrl.types import (
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Transition,
)


@dataclass(frozen=True)
class Config(sac.Config):
    """SAC's settings with the sizes and rates of CQL on locomotion (released code, CORL)."""

    actor_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)  # ReLU
    critic_layers: Annotated[tuple[int, ...], sizes()] = (256, 256, 256)  # ReLU
    actor_learning_rate: Annotated[float, at_least(0)] = 3e-5  # Adam
    temperature_learning_rate: Annotated[float, at_least(0), sac.if_learned] = 3e-5  # Adam
    # The conservative term
    gap: conservative.Config = field(default_factory=conservative.Config)
    # The next value: of one action; minus its entropy term; or the best of `gap.num_actions`
    backup: Literal["sample", "soft", "maximum"] = "sample"
    cloning_updates: Annotated[int, at_least(0)] = 0  # first updates of the actor, without critics
    inputs: InputConfig = field(default_factory=lambda: InputConfig(standardize_observations=True))


PRESETS = {
    "gym": {},
    "gym_scaled": {  # rewards by the range of returns: Hopper's sets
        "inputs": InputConfig(standardize_observations=True, return_range=1_000.0)
    },
    "maze2d": {"gap": conservative.Config(target_gap=5.0)},
    "antmaze": {
        "critic_layers": (256,) * 5,
        "actor_learning_rate": 1e-4,
        "temperature_learning_rate": 1e-4,
        "gap": conservative.Config(coef=2.5, minimum=-200.0, target_gap=0.8),
        "backup": "maximum",
        "inputs": InputConfig(reward_scale=10.0, reward_shift=-5.0),
    },
    "released": {  # as in the comparisons of ROMI
        "actor_learning_rate": 1e-4,
        "temperature_learning_rate": 1e-4,
        "gap": conservative.Config(coef=2.5),
        "cloning_updates": 40_000,
        "inputs": InputConfig(),
    },
}


# --- the parts of an update ---


def cloning_first(num_updates: int) -> actor_critic.ActorObjective:
    """`sac.soft_objective`, with the data's log density in the critics' place at first.

    Args:
      num_updates: until that many updates are done.
    """

    def objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        soft = sac.soft_objective(agent, context, batch, key)
        assert soft.log_prob is not None
        likelihood = candidates.cloning_loss(agent.policy, batch, jnp.ones_like(batch.reward))
        cloning = agent.temperature * jnp.mean(soft.log_prob) + likelihood.loss
        is_first = agent.state.num_updates < num_updates
        return soft._replace(loss=jnp.where(is_first, cloning, soft.loss))

    return objective if num_updates else sac.soft_objective


# --- assembly ---


def method(config: Config, spec: EnvironmentSpec) -> Method:
    """The method, whose parts others replace.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "cql", spec)
    base = sac.method(config, spec)
    networks = base.networks
    if config.gap.target_gap is not None:
        networks = conservative.with_multiplier(networks)
    backups = {
        "sample": candidates.best_backup(config.gamma, 1),
        "soft": sac.soft_backup(config.gamma),
        "maximum": candidates.best_backup(config.gamma, config.gap.num_actions),
    }
    return base._replace(
        networks=networks,
        backup=backups[config.backup],
        critic_regularizer=conservative.regularizer(config.gap),
        actor_objective=cloning_first(config.cloning_updates),
    )


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    learner = actor_critic.make(method(config, spec), memory.Transitions(config.batch_size))
    return with_inputs(learner, config.inputs)
