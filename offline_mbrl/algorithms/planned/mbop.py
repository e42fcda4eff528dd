"""MBOP (arXiv:2008.05556): plans around a clone of the data's behavior, valued by its own returns.

A model, a clone and the sum of the next rewards are fitted to the data. To act, N trajectories
follow the clone through the model:

    a_t = (1 - mixing) (clone(s_t) + noise std(a) eps) + mixing plan_t
    G_i = sum_{t<H} gamma^t r_t + gamma^H R(s_H, clone(s_H))
    plan = sum_i w_i a^i,   w_i proportional to exp(kappa G_i)

and the first action of the plan acts. Nothing is optimized beyond what the clone proposes, so that
rewards and horizons can be changed after training.

Departures from Acme's code: the clone sees the observation alone, not the action before it; it is a
single density whose mode proposes, where Acme averages an ensemble; members of the model are
probabilistic ones, each at its mean; the return head is asked at the clone's action in the last
state rather than at the last action before it; the plan is shifted by a step before it is mixed in
(`shift_plan`); and nothing counts after a predicted end. Acme documents its noise as a variance but
uses it as a deviation, as here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from offline_mbrl import policies, settings
from offline_mbrl.algorithms.planned import assembly, return_head
from offline_mbrl.algorithms.planned.return_head import ReturnConfig
from offline_mbrl.learners import bc
from offline_mbrl.models import explicit, feedforward, kinds
from offline_mbrl.planning import improve, path_integral, shooting
from offline_mbrl.planning.improve import Weigh
from offline_mbrl.settings import Scope, above, at_least, between, read_if
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    Policy,
    PyTree,
    Stage,
)


def _is_exponential(scope: Scope) -> bool:
    return scope.config.aggregate == "exponential"


def _is_best(scope: Scope) -> bool:
    return scope.config.aggregate == "best"


MODEL = feedforward.FeedforwardConfig(num_members=5)


@dataclass(frozen=True)
class Config(assembly.Config):
    """Acme's settings of the planner."""

    num_updates: Annotated[int, at_least(1)] = 200_000  # of the clone
    dynamics: kinds.ModelConfig = field(default_factory=lambda: MODEL)
    policy: bc.Config = field(default_factory=bc.Config)
    returns: ReturnConfig = field(default_factory=ReturnConfig)
    gamma: Annotated[float, between(0, 1)] = 1.0  # of rewards and of the head's targets
    horizon: Annotated[int, at_least(0)] = 15  # H
    num_candidates: Annotated[int, at_least(1)] = 1_000  # N
    noise: Annotated[float, at_least(0)] = 0.8  # in deviations of the data's actions
    mixing: Annotated[float, between(0, 1)] = 0.2  # of the plan before
    shift_plan: bool = True  # by a step before it is mixed in; Acme does not
    aggregate: Literal["exponential", "best"] = "exponential"
    kappa: Annotated[float, above(0), read_if(_is_exponential, "aggregate exponential")] = 0.5
    num_best: Annotated[int, at_least(1), read_if(_is_best, "aggregate best")] = 10


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "acme": {"shift_plan": False},
    "best": {"aggregate": "best"},
    # Ours, for acting on a CPU
    "cpu": {"num_candidates": 100, "horizon": 5},
}


# --- parts ---


def pretrain(config: Config, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stages "model" and "returns".

    Raises:
      UsageError: no rule of termination has this name, the spec is not one of vectors, or the
        actions are discrete.
    """
    head = return_head.stage(config.returns, spec, gamma=config.gamma)
    return {**assembly.pretrain(config, spec), "returns": head}


def greedy(policy: Policy) -> Policy:
    """The policy that always takes its most probable action."""

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        del key  # deterministic
        return policy.mode(params, observation)

    return Policy(sample=sample, mode=policy.mode)


def weigh(config: Config) -> Weigh:
    """How returns become weights of trajectories.

    Raises:
      UsageError: a setting makes no weights.
    """
    if config.aggregate == "best":
        return improve.best(config.num_best)
    return improve.exponential(1.0 / config.kappa)


def _action_std(params: Params) -> Array:
    return params["model"].statistics.action_std


# --- assembly ---


def make(config: Config, spec: EnvironmentSpec) -> Learner:
    """The learner of the clone; its policy is the planner, an `Actor`.

    Raises:
      UsageError: the actions are discrete, a setting makes no learner, or no rule of termination
        has this name.
    """
    settings.require_valid(config, "mbop", spec)
    learner = bc.make(replace(config.policy, num_updates=config.num_updates), spec)
    task = assembly.task(
        config,
        spec,
        greedy(policies.require_memoryless(learner.policy, "mbop")),
        horizon=config.horizon,
        gamma=config.gamma,
        tail=return_head.tail(config.returns, spec, gamma=config.gamma),
        draw=explicit.MEAN,
    )
    actor = path_integral.mppi(
        task,
        path_integral.along_policy(
            task, noise=config.noise, mixing=config.mixing, unit=_action_std
        ),
        weigh(config),
        num_candidates=config.num_candidates,
        budget=config.budget,
        shift=shooting.shifted if config.shift_plan else shooting.unshifted,
    )

    def policy_params(state: PyTree, context: Context) -> Params:
        return {"policy": learner.policy_params(state, context), **context.upstream}

    return learner._replace(policy=actor, policy_params=policy_params)
