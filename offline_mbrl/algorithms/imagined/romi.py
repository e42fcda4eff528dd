"""ROMI (arXiv:2110.00188): imagined paths that lead to states of the data, for BCQ or CQL.

A reverse model `p(s, r | s', a)` and a reverse policy `p(a | s')` are rolled out backwards from
states of the data. In the order of time such a path ends in the data, however far from them it
begins, so that nothing has to measure the model's uncertainty. Paths are imagined once; the
model-free learner then sees batches of both kinds of rows. FOMI, the paper's ablation, is the same
with time running forwards.

The reverse model is any explicit one, on the data with time reversed: its reward is predicted from
`(s', a)` beside the state before, as in the released code.

Departures: minibatches and evaluations of the model (`models.fitting`); each elite member rolls its
share of the starts alone, where the released code draws another elite at every step; rows that
count more by their episode's return are drawn with replacement. Time limits are no reason to leave
a transition out here, because the data hold what it led to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

from offline_mbrl import settings
from offline_mbrl.algorithms import endings
from offline_mbrl.algorithms.imagined import proposals, rows
from offline_mbrl.algorithms.imagined.proposals import ProposalConfig
from offline_mbrl.data import memory, reverse, splits
from offline_mbrl.learners import bcq, cql
from offline_mbrl.models import gaussian_ensemble, kinds
from offline_mbrl.rollouts import imagination, shares
from offline_mbrl.rollouts import reverse as backwards
from offline_mbrl.rollouts.imagination import Imagine
from offline_mbrl.settings import at_least, between
from offline_mbrl.types import EnvironmentSpec, Learner, Stage, Termination, whole


@dataclass(frozen=True)
class ImaginedConfig:
    """What both directions share, with the released code's sizes; presets have each domain's."""

    num_updates: Annotated[int, at_least(1)] = 1_000_000  # of the policy
    # How imagined episodes end: by the "learned" head of the model, "never", or by the rule of a
    # task's or a dataset's name (`environments.termination`).
    termination: str = "learned"
    dynamics: kinds.ModelConfig = field(default_factory=gaussian_ensemble.Config)
    proposal: ProposalConfig = field(default_factory=ProposalConfig)  # acts in the rollouts
    horizon: Annotated[int, at_least(1)] = 5  # steps of a rollout
    num_starts: Annotated[int, at_least(1)] = 1_000  # rollouts side by side
    num_rows: Annotated[int, at_least(1)] = 4_000_000  # imagined, where all steps happen
    imagined_fraction: Annotated[float, between(0, 1)] = 0.1  # of a batch
    # Whether starts and real rows count by the return of their episode
    by_return: bool = False


@dataclass(frozen=True)
class ReverseConfig(ImaginedConfig):
    """What backward paths need beside that."""

    # Transitions into true terminals: "leave_out" of model and starts (released); "halt", such a
    # step is imagined and nothing before it (released for AntMaze); "extend" the path before it.
    terminals: Literal["leave_out", "halt", "extend"] = "leave_out"


@dataclass(frozen=True)
class Config(ReverseConfig):
    """ROMI with BCQ, the published maze results."""

    policy: bcq.Config = field(default_factory=bcq.Config)


@dataclass(frozen=True)
class CqlConfig(ReverseConfig):
    """ROMI with CQL, the published locomotion results."""

    num_updates: Annotated[int, at_least(1)] = 1_500_000
    policy: cql.Config = field(default_factory=lambda: cql.Config(**cql.PRESETS["released"]))


@dataclass(frozen=True)
class ForwardConfig(ImaginedConfig):
    """FOMI with BCQ."""

    policy: bcq.Config = field(default_factory=bcq.Config)


LEARNERS: tuple[tuple[type, Callable[..., Learner]], ...] = (
    (bcq.Config, bcq.make),
    (cql.Config, cql.make),
)
_UNIFORM = ProposalConfig(kind="uniform")
_BY_RETURN = {"imagined_fraction": 0.1, "by_return": True}
_MAZES = {"umaze": 0.7, "medium": 0.5, "large": 0.3}  # imagined rows of a batch
_ANTMAZES = {
    "antmaze_umaze": "umaze-v0",
    "antmaze_medium": "medium-play-v0",
    "antmaze_large": "large-play-v0",
}


def _locomotion(task: str, **changes: Any) -> dict[str, Any]:
    return {"termination": f"d4rl_mujoco_{task}", **_BY_RETURN, **changes}


# wenzhe-li/romi, on maze2d v1, antmaze v0 and locomotion v2
FORWARD_PRESETS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"maze2d_{maze}": {
            "termination": "never",
            "proposal": _UNIFORM,
            "imagined_fraction": fraction,
        }
        for maze, fraction in _MAZES.items()
    },
    **{
        name: {"termination": f"d4rl_antmaze/{version}", **_BY_RETURN}
        for name, version in _ANTMAZES.items()
    },
    "hopper": _locomotion("hopper", proposal=_UNIFORM),
    "walker2d": _locomotion("walker2d", horizon=1),
    "halfcheetah": _locomotion("halfcheetah", horizon=1),
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: {**preset, "terminals": "halt"} if name in _ANTMAZES else preset
    for name, preset in FORWARD_PRESETS.items()
}


# --- which way time runs ---


class Direction(NamedTuple):
    """What differs between ROMI and FOMI."""

    stage: str  # of the model
    orient: Callable[[memory.Dataset], memory.Dataset]  # what model and proposal are fitted to
    rule: Callable[[Termination], Termination]  # a task's rule, as the model sees transitions
    rollout: Mapping[str, Any]  # further arguments of `imagination.by_rollout`
    order: Callable[[Imagine], Imagine]  # paths in the order of time


def _same(function: Any) -> Any:
    return function


FORWARD = Direction(stage="model", orient=whole, rule=_same, rollout={}, order=_same)
HALTING = Direction(
    stage="reverse_model",
    orient=reverse.reversed_in_time,
    rule=backwards.of_reverse,
    rollout={},
    order=backwards.reversed_in_time,
)
LEAVING_OUT = HALTING._replace(
    orient=lambda dataset: reverse.reversed_in_time(reverse.without_terminals(dataset))
)
EXTENDING = HALTING._replace(
    rollout={
        "adjust": lambda context: backwards.go_on,
        "measure": lambda context: backwards.continuation,
    },
    order=lambda imagine: backwards.reversed_in_time(backwards.ending_in_terminals(imagine)),
)
TERMINALS = {"leave_out": LEAVING_OUT, "halt": HALTING, "extend": EXTENDING}


def direction(config: ImaginedConfig) -> Direction:
    """Which way time runs: backwards where the config says what becomes of terminals there."""
    return TERMINALS[config.terminals] if isinstance(config, ReverseConfig) else FORWARD


# --- assembly ---


def pretrain(config: ImaginedConfig, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The stages of the model, of the proposal where it is fitted, and "imagination".

    Raises:
      UsageError: no rule of termination has this name, or the spec is not one of vectors and
        continuous actions.
    """
    way = direction(config)
    options = endings.model_options(config.termination, spec)
    if "terminate" in options:
        options.update(terminate=way.rule(options["terminate"]))
    model = kinds.stage(config.dynamics, spec, **options)
    proposal = proposals.make(config.proposal, spec, prepare=way.orient)
    weigh = splits.weighted_by_return if config.by_return else whole
    imagine = imagination.by_rollout(
        kinds.make(config.dynamics, spec, **options),
        proposal.policy,
        horizon=config.horizon,
        spread=shares.by_member,
        upstream=way.stage,
        **way.rollout,
    )
    imagining = rows.stage(
        way.order(imagine),
        proposal.params,
        spec,
        num_rows=config.num_rows,
        num_starts=config.num_starts,
        horizon=config.horizon,
        prepare=lambda dataset: weigh(way.orient(dataset)),
    )
    oriented = model._replace(prepare=lambda dataset: model.prepare(way.orient(dataset)))
    return {way.stage: oriented, **proposal.stages, rows.NAME: imagining}


def prepare(config: ImaginedConfig, dataset: memory.Dataset) -> memory.Dataset:
    """What the policy's real rows are drawn from."""
    return splits.weighted_by_return(dataset) if config.by_return else dataset


def make(config: Config | CqlConfig | ForwardConfig, spec: EnvironmentSpec) -> Learner:
    """The policy's learner, on real rows and those of the stage "imagination".

    Raises:
      UsageError: the actions are discrete, or a setting makes no learner.
    """
    settings.require_valid(config, "romi", spec)
    policy = replace(config.policy, num_updates=config.num_updates)
    make_learner = next(make for kind, make in LEARNERS if isinstance(policy, kind))
    return rows.beside(make_learner(policy, spec), config.imagined_fraction)
