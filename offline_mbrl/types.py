"""The nouns of the package: what flows from data to model, search, targets, learner and evaluation.

Axes, everywhere: `B` batch, `T` time, `K` unrolled model steps, `A` number of discrete actions or size of a
continuous one, `N` candidate actions, `S` seeds. Every record holds arrays or pure functions, nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any
Metrics = Mapping[str, Array]


class UsageError(ValueError):
    """Bad input. The message names what was wrong, where, and what to do; the command line prints only that."""


# --- experience ---


class Transition(NamedTuple):
    """One step. Any field may carry leading batch axes."""

    observation: PyTree  # [...]
    action: Array  # [A] in [-1, 1], or [] integer
    reward: Array  # []
    discount: Array  # []   0 at a true terminal, else 1; never the discount factor
    next_observation: PyTree  # [...]
    extras: PyTree = ()  # for example {"behavior_log_prob": []}


class Trajectory(NamedTuple):
    """A window: T steps, T + 1 observations.

    Past the end of an episode the last observation repeats and `mask` is 0. There `discount` tells the two kinds
    of end apart: 0 after a true terminal (an absorbing state), 1 after a truncation (nothing is known).
    """

    observation: PyTree  # [T + 1, ...]
    action: Array  # [T, ...]
    reward: Array  # [T]   0 where nothing happened
    discount: Array  # [T]   0 at a true terminal and after it
    mask: Array  # [T]   1 while the step really happened
    extras: PyTree = ()


# --- what a problem looks like from outside: static, no data ---


@dataclass(frozen=True)
class DiscreteActions:
    """Actions 0 .. num_actions - 1."""

    num_actions: int


@dataclass(frozen=True)
class BoundedActions:
    """Continuous actions. Learners see [-1, 1]; `minimum` and `maximum` are the simulator's own units, `[A]`."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]

    @property
    def size(self) -> int:
        """Number of action dimensions."""
        return len(self.minimum)


@dataclass(frozen=True)
class EnvironmentSpec:
    """Shapes and bounds only, no data."""

    observation: PyTree  # of jax.ShapeDtypeStruct, one record
    action: DiscreteActions | BoundedActions
    gamma: float = 0.99  # the benchmark's discount factor; a config's own gamma wins
    horizon: int = 0  # longest episode in steps; 0 when unknown


def num_actions(spec: EnvironmentSpec, who: str) -> int:
    """The number of discrete actions; raises UsageError in the name of `who` when they are continuous."""
    if not isinstance(spec.action, DiscreteActions):
        raise UsageError(f"{who} needs discrete actions, but this dataset's are continuous")
    return spec.action.num_actions


def action_size(spec: EnvironmentSpec, who: str) -> int:
    """The size of continuous actions; raises UsageError in the name of `who` when they are discrete."""
    if not isinstance(spec.action, BoundedActions):
        raise UsageError(f"{who} needs continuous actions, but this dataset's are discrete")
    return spec.action.size


# --- models and plans ---


class Init(Protocol):
    """(key) -> params."""

    def __call__(self, key: Array, /) -> PyTree: ...


class LatentModel(NamedTuple):
    """A model in latent space (the MuZero family). All functions take one state; vmap for many.

    Training needs logits, search needs scalars: `predict` gives logits, `scalar` turns the reward's or the
    value's logits into raw units.
    """

    init: Init
    represent: Any  # (params, observation) -> embedding
    dynamics: Any  # (params, embedding, action) -> embedding of the state the action leads to
    predict: Any  # (params, embedding) -> LatentPrediction
    scalar: Any  # (logits [bins]) -> [] in raw units


class LatentPrediction(NamedTuple):
    """Heads of a latent model at one embedding."""

    policy_logits: Array  # [A]
    reward_logits: Array  # [bins]   of the transition that led here
    value_logits: Array  # [bins]


class Plan(NamedTuple):
    """What a planner found at one root."""

    action: Array  # the chosen action
    actions: Array  # [N, ...] candidates: all of them, or samples
    weights: Array  # [N] the policy target; need not sum to one (a sampled operator's does not)
    qvalues: Array  # [N]
    value: Array  # []   value of the root


class Planner(Protocol):
    """(params, embedding, key) -> Plan, for one root."""

    def __call__(self, params: PyTree, embedding: PyTree, key: Array, /) -> Plan: ...


# --- policies and learners ---


def no_memory() -> tuple[()]:
    """The memory of a policy that needs none."""
    return ()


class Policy(NamedTuple):
    """Everything downstream of learning sees only this."""

    sample: Any  # (params, observation, key) -> action
    mode: Any  # (params, observation) -> action, the greedy one
    log_prob: Any = None  # (params, observation, action) -> [], or None where it has no density
    init_memory: Any = no_memory  # () -> memory carried through an episode


def keep(state: PyTree, dataset: PyTree, key: Array) -> PyTree:
    """The refresh of a learner that has nothing to refresh."""
    del dataset, key
    return state


class Learner(NamedTuple):
    """A stateless description of learning: all arrays are in `state`, all randomness comes by key."""

    sample: Any  # (dataset, key) -> batch; pure, runs inside the scan
    init: Any  # (key, example batch, statistics, given) -> state; `given` holds what earlier stages hand on
    step: Any  # (state, batch, key) -> (state, metrics: dict of [] scalars)
    policy: Policy | None  # acts with policy_params(state); None for a stage that only fits a model
    policy_params: Any  # (state) -> params: no optimizer, no buffer
    refresh: Any = keep  # (state, dataset, key) -> state; imagined rollouts happen here
    refresh_every: int = 0  # updates between refreshes; 0 never


def nothing(config: Any, spec: EnvironmentSpec) -> dict[str, Learner]:
    """The pretraining of an algorithm that has no earlier stage."""
    del config, spec
    return {}


class Algorithm(NamedTuple):
    """One registry entry."""

    config: type  # frozen dataclass; `num_updates` is its only required field
    make: Any  # (config, spec) -> Learner
    pretrain: Any = nothing  # (config, spec) -> dict[str, Learner]; their policy_params arrive as given[name]
    presets: Mapping[str, Mapping[str, Any]] = {}  # named settings: published, released, ...
