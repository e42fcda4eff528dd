"""CBOP: critics regress to a lower bound of what a model and they themselves say of the next value.

From the next state of the data and one action of the policy there, K particles roll out in K
members of a dynamics ensemble. At each depth h = 0..H the rewards so far and every one of M target
critics give K M estimates of the same value. Each depth counts by the inverse of its variance, so
that the target rests on the model as far as it is sure of itself; the target is the posterior's
mean minus `psi` of its deviations. MVE (arXiv:1803.00101) and STEVE (arXiv:1807.01675) are other
weightings, H = 0 is the ensemble's lower bound without a model: see `PRESETS`.

Source: Jeong et al., Conservative Bayesian model-based value expansion for offline policy
optimization, ICLR 2023, and its released code. The rest is soft actor-critic with M critics and
EDAC's diversity.

Departures: weights start as those of `torsos.MLP` (the code has biases of 0.1 and last layers near
0); squared errors and diversity carry a 1/2; entropy enters once, at the next state, as in the
code. The code's independent rollouts for each depth are left out (in them block h has the reward
of step h - 1 alone), and so is its geometric weight of 1, which is the weighting `last` here. With
fewer particles than elites an update draws its members anew. The released MVE and STEVE also
train critics at imagined states and learn ensembles of reward and termination functions; here both
have CBOP's networks and rollouts.

Where no rule of termination is known the model learns a continuation head (`termination`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.algorithms import endings, expanded_targets, warm_start
from offline_mbrl.algorithms.expanded_targets import Depths
from offline_mbrl.algorithms.warm_start import WarmStart
from offline_mbrl.data import memory
from offline_mbrl.learners import edac, sac
from offline_mbrl.learners.parts import actor_critic
from offline_mbrl.learners.parts.actor_critic import ActorLoss, Agent
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.rollouts import adjust
from offline_mbrl.settings import Scope, above, at_least, between, read_if
from offline_mbrl.targets import value_expansion
from offline_mbrl.targets.value_expansion import Posterior, Prior, Weighting
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Stage,
    Transition,
)


def _has_prior(scope: Scope) -> bool:
    return scope.config.weighting == "gaussian" and scope.config.prior_std is not None


def _is(*weightings: str) -> Callable[[Scope], bool]:
    return lambda scope: scope.config.weighting in weightings


POLICY = sac.Config(actor_layers=(256, 256, 256), critic_layers=(256, 256, 256), num_critics=20)
DYNAMICS = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS["cbop"])


@dataclass(frozen=True)
class Config:
    """The paper's settings, with `psi` of the published command."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000
    policy: sac.Config = field(default_factory=lambda: POLICY)  # M: `num_critics`
    dynamics: kinds.ModelConfig = field(default_factory=lambda: DYNAMICS)
    # "learned", "never", or a task's or a dataset's name in `environments.termination`
    termination: str = "learned"
    # The target
    horizon: Annotated[int, at_least(0)] = 10  # H
    num_particles: Annotated[int, at_least(1)] = 20  # K
    weighting: Literal["gaussian", "student_t", "uniform", "geometric", "last"] = "gaussian"
    decay: Annotated[float, between(0, 1), read_if(_is("geometric"), "weighting geometric")] = 0.5
    psi: Annotated[float, at_least(0)] = 3.0  # deviations below the mean
    # A normal belief about every value before any return; None: there is none.
    prior_std: Annotated[float | None, above(0), read_if(_is("gaussian"), "weighting gaussian")] = (
        None
    )
    prior_mean: Annotated[float, read_if(_has_prior, "a prior_std")] = 0.0
    clip_observations: bool = True  # predicted ones, to the range of the data
    # Deviation of noise on predicted observations, in the data's: a worse model, for studies.
    model_noise: Annotated[float, at_least(0)] = 0.0
    bfloat16: bool = False  # critics at depths of 1 and more, for accelerators
    # Actor and critics
    actor_value: Literal["min", "mean"] = "min"  # of the critics, which the actor climbs
    eta: Annotated[float, at_least(0)] = 1.0  # weight of EDAC's diversity
    warm_start: WarmStart = field(default_factory=WarmStart)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "hopper": {
        "policy": replace(POLICY, num_critics=50),
        "termination": "d4rl_mujoco_hopper",
    },
    **{name: {"termination": f"d4rl_mujoco_{name}"} for name in ("halfcheetah", "walker2d")},
    # With the released pretraining; its early stopping is replaced by these numbers of updates.
    "pretrained": {"warm_start": WarmStart(cloning_updates=20_000, evaluation_updates=100_000)},
    "gpu": {"bfloat16": True},
    # Ours: some 40 updates a second on one core.
    "cpu": {
        "policy": sac.Config(
            batch_size=128, actor_layers=(128, 128), critic_layers=(128, 128), num_critics=5
        ),
        "dynamics": gaussian_ensemble.Config(),
        "horizon": 3,
        "num_particles": 5,
    },
    "mve": {"weighting": "last", "psi": 0.0},
    "steve": {"psi": 0.0},
    "lcb": {"horizon": 0},
}


# --- the target ---


def weighting(config: Config) -> Weighting:
    """How the depths become one value."""
    prior = None
    if config.prior_std is not None:
        prior = Prior(mean=config.prior_mean, variance=config.prior_std**2)

    def gaussian(returns: Array, mask: Array) -> Posterior:
        return value_expansion.gaussian(returns, mask, prior=prior)

    horizon = config.horizon
    constant = {
        "uniform": value_expansion.uniform_weights(horizon),
        "geometric": value_expansion.geometric_weights(horizon, config.decay),
        "last": value_expansion.last_weight(horizon),
    }
    table = {
        "gaussian": gaussian,
        "student_t": value_expansion.student_t,
        **{name: value_expansion.fixed(weights) for name, weights in constant.items()},
    }
    return table[config.weighting]


def _depths(config: Config) -> Depths:
    noise = [adjust.noise(config.model_noise)] if config.model_noise else []
    clip = [adjust.clip_observation] if config.clip_observations else []
    return Depths(
        horizon=config.horizon,
        num_particles=config.num_particles,
        gamma=config.policy.gamma,
        adjust=adjust.chain(*noise, *clip),
        dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
    )


# --- assembly ---


def actor_objective(config: Config) -> actor_critic.ActorObjective:
    """`sac.soft_objective` with the least or the mean of the critics."""
    reduce = {"min": jnp.min, "mean": jnp.mean}[config.actor_value]

    def objective(agent: Agent, context: Context, batch: Transition, key: Key) -> ActorLoss:
        def critics(observation: Observation, action: Action) -> Array:
            return reduce(agent.critics(observation, action), axis=0, keepdims=True)

        return sac.soft_objective(agent._replace(critics=critics), context, batch, key)

    return objective


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stage "model", and those of the warm start.

    Raises:
      UsageError: the actions are discrete, or no rule of termination has this name.
    """
    networks = sac.networks(config.policy, spec)
    model = kinds.stage(config.dynamics, spec, **endings.model_options(config.termination, spec))
    gamma = config.policy.gamma
    return {"model": model, **warm_start.stages(config.warm_start, networks, spec, gamma=gamma)}


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "cbop", spec)
    base = sac.method(replace(config.policy, num_updates=config.num_updates), spec)
    networks = base.networks
    model = kinds.make(config.dynamics, spec, **endings.model_options(config.termination, spec))
    diversity = edac.diversity(networks.critics, config.eta)
    method = base._replace(
        backup=expanded_targets.backup(
            model, networks, _depths(config), combine=weighting(config), psi=config.psi
        ),
        backup_metrics=lambda targets: targets.metrics,
        regression=expanded_targets.regression,
        actor_objective=actor_objective(config),
        critic_regularizer=diversity if config.eta and config.policy.num_critics > 1 else None,
    )
    learner = actor_critic.make(method, memory.Transitions(config.policy.batch_size))
    return warm_start.started(learner, config.warm_start)
