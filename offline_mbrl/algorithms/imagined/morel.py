"""MOReL (arXiv:2005.05951): a policy in a model whose episodes end where its members disagree.

Where the largest distance between two members' predictions exceeds a threshold, the episode halts
with the reward `-kappa`. A stage of its own sets the threshold by the disagreement at transitions
of the data.

Departures: the policy is learned by soft actor-critic instead of natural gradients from a cloned
start, the reward by the model instead of given, and the threshold is that of a sample of the
data. The released code cuts trajectories without a reward for it (`kappa` 0), the paper's halting
costs `c` less than the smallest reward (`halt_offset`). Where rewards are negative, halting must
cost more than going on: give `kappa`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from offline_mbrl import settings
from offline_mbrl.algorithms.imagined import assembly
from offline_mbrl.data import memory
from offline_mbrl.learners import sac
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.rollouts import imagination, pessimism, shares
from offline_mbrl.rollouts.adjust import Adjust
from offline_mbrl.rollouts.imagination import ImaginationConfig
from offline_mbrl.rollouts.unroll import unroll
from offline_mbrl.settings import Scope, above, at_least, between, read_if
from offline_mbrl.types import (
    Array,
    Context,
    DynamicsModel,
    EnvironmentSpec,
    Key,
    Learner,
    Metrics,
    Stage,
    Transition,
)

PENALTY = pessimism.max_pairwise_disagreement
BATCH_SIZE = 256  # transitions judged at once


def _by(rule: str) -> settings.ReadIf:
    def holds(scope: Scope) -> bool:
        return scope.config.threshold == rule

    return read_if(holds, f"threshold {rule}")


def _has_no_kappa(scope: Scope) -> bool:
    return scope.config.kappa is None


DYNAMICS = gaussian_ensemble.Config(**gaussian_ensemble.PRESETS["morel"])
ROLLOUTS = ImaginationConfig(num_starts=2_000, horizon=150, starts="initial", real_fraction=0.0)


@dataclass(frozen=True)
class Config(assembly.Config):
    """MOReL's model and threshold with rollouts for a learner of transitions."""

    dynamics: kinds.ModelConfig = field(default_factory=lambda: DYNAMICS)
    imagination: ImaginationConfig = field(default_factory=lambda: ROLLOUTS)
    policy: sac.Config = field(default_factory=sac.Config)
    threshold: Literal["max_over_pessimism", "mean_plus_beta_std", "quantile"] = (
        "max_over_pessimism"
    )
    # The data's largest disagreement over it (released code, Hopper)
    pessimism: Annotated[float, above(0), _by("max_over_pessimism")] = 3.0
    beta: Annotated[float, _by("mean_plus_beta_std")] = 3.0  # deviations above the mean (paper)
    quantile: Annotated[float, between(0, 1), _by("quantile")] = 0.99  # of the disagreements (ours)
    num_judged: Annotated[int, at_least(1)] = 50_000  # transitions that set the threshold
    kappa: float | None = None  # halting gives -kappa; None: the smallest reward minus halt_offset
    # The paper searches 30, 50, 100 and 200.
    halt_offset: Annotated[float, read_if(_has_no_kappa, "kappa None")] = 50.0


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # aravindr93/mjrl, projects/morel: 50 trajectories in each of 4 members, no reward at the end
    "released_hopper": {
        "imagination": replace(ROLLOUTS, num_starts=200, horizon=700),
        "policy": sac.Config(gamma=0.999),
        "kappa": 0.0,
        "termination": "d4rl_mujoco_hopper",
    },
    # The comparison in the code of CBOP (ICLR 2023)
    "cbop_hopper": {"kappa": 50.0, "termination": "d4rl_mujoco_hopper"},
    "cbop_halfcheetah": {"kappa": 50.0, "termination": "d4rl_mujoco_halfcheetah"},
    "cbop_walker2d": {"kappa": 30.0, "termination": "d4rl_mujoco_walker2d"},
}


# --- the threshold ---


class Judged(NamedTuple):
    """Disagreements at transitions of the data."""

    values: Array  # [num_judged]
    count: Array  # [] int32, batches so far


def threshold(config: Config, disagreements: Array) -> Array:
    """The largest disagreement that is trusted, `[]`.

    Args:
      config: by which rule.
      disagreements: `[N]` at transitions of the data.
    """
    if config.threshold == "max_over_pessimism":
        return jnp.max(disagreements) / config.pessimism
    if config.threshold == "mean_plus_beta_std":
        return jnp.mean(disagreements) + config.beta * jnp.std(disagreements)
    return jnp.quantile(disagreements, config.quantile)


def judge(config: Config, model: DynamicsModel, spec: EnvironmentSpec) -> Learner:
    """Notes the members' disagreement at `num_judged` transitions, a batch in each update."""
    batch_size = min(BATCH_SIZE, config.num_judged)
    policy = imagination.uniform_policy(spec)  # the data's actions take the place of its own
    measure = pessimism.measure(PENALTY)
    steps = shares.jointly.apply(model, unroll(model, policy, horizon=1, measure=measure))

    def disagreements(context: Context, batch: Transition, key: Key) -> Array:
        keys = jax.random.split(key, batch.reward.shape[0])
        params = context.upstream["model"]
        return steps(params, None, batch.observation, keys, batch.action).extras["penalty"][:, 0]

    def init(key: Key, example: Transition, context: Context) -> Judged:
        del key, example, context
        return Judged(values=jnp.zeros(config.num_judged), count=jnp.int32(0))

    def step(
        state: Judged, context: Context, batch: Transition, key: Key
    ) -> tuple[Judged, Metrics]:
        values = disagreements(context, batch, key)
        rows = (state.count * batch_size + jnp.arange(values.shape[0])) % config.num_judged
        after = Judged(values=state.values.at[rows].set(values), count=state.count + 1)
        return after, {"loss/total": jnp.mean(values)}

    def validate(state: Judged, context: Context, batch: Transition, key: Key) -> Metrics:
        del state
        return {"loss/total": jnp.mean(disagreements(context, batch, key))}

    return Learner(
        sample=memory.Transitions(batch_size),
        init=init,
        step=step,
        validate=validate,
        policy=None,
        policy_params=lambda state, context: threshold(config, state.values),
    )


# --- assembly ---


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stages "model" and "threshold".

    Raises:
      UsageError: no rule of termination has this name, or the spec is not one of vectors.
    """
    learner = judge(config, assembly.dynamics(config, spec), spec)
    num_updates = -(-config.num_judged // min(BATCH_SIZE, config.num_judged))
    judging = Stage(learner=learner, num_updates=num_updates)
    return {**assembly.pretrain(config, spec), "threshold": judging}


def halting(config: Config, context: Context) -> Adjust:
    """Ends episodes above the threshold that the stage handed on."""
    halt_reward = context.upstream["model"].statistics.reward_min - config.halt_offset
    if config.kappa is not None:
        halt_reward = -config.kappa
    return pessimism.halt(PENALTY, context.upstream["threshold"], halt_reward)


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "morel", spec)
    learner = sac.make(replace(config.policy, num_updates=config.num_updates), spec)
    disagreement = pessimism.measure(PENALTY)
    return assembly.beside_rollouts(
        learner,
        config,
        spec,
        adjust=functools.partial(halting, config),
        measure=lambda context: disagreement,
    )
