"""The nouns of the package: what flows from data to model, search, targets, learner and evaluation.

Axes, everywhere: `B` batch, `T` time, `K` unrolled model steps, `A` number of discrete actions or size of a
continuous one, `N` candidate actions, `S` seeds. Every record holds arrays or pure functions, nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    observation: PyTree  # of jax.ShapeDtypeStruct, what the policy sees
    action: DiscreteActions | BoundedActions
    gamma: float = 0.99  # the benchmark's discount factor; a config's own gamma wins
    horizon: int = 0  # longest episode in steps; 0 when unknown
    frame_stack: int = 1  # records that make one observation, oldest first, on its last axis (pixels)


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


class Prediction(NamedTuple):
    """What a dynamics model says about one step."""

    observation: PyTree  # predicted next observation
    reward: Array  # []
    discount: Array  # []   predicted continuation: 0 where the episode ends in a true terminal
    members: PyTree = ()  # what each member said [E, ...]; the model's own record


class DynamicsModel(NamedTuple):
    """A model of `(observation, action) -> (reward, next observation)` in raw units, always an ensemble of E >= 1.

    Parameters are `{"network": {"members": [E, ...], "shared": ...}, "statistics": ..., "elites": [k]}`; only
    `network` is learned. All functions but `loss` take one transition; vmap for many. D = size of the flat
    observation + 1: its entries in order, then the reward.
    """

    init: Callable[[Array, PyTree], PyTree]  # (key, statistics of the data) -> params
    loss: Callable[[PyTree, Transition, Array], tuple[Array, Metrics]]  # (params, batch [E, B, ...], key)
    log_prob: Callable[..., Array]  # (params, observation, action, next_observation, reward) -> [E, D] nats, raw units
    reset: Callable[[PyTree, PyTree, Array], PyTree]  # (params, observation, key) -> model_state
    step: Callable[[PyTree, PyTree, Array, Array], tuple[PyTree, Prediction]]  # (params, model_state, action, key)
    member: Callable[[PyTree, Any], PyTree]  # (params, e) -> params of member e alone, an ensemble of one


class LatentModel(NamedTuple):
    """A model in latent space (the MuZero family). All functions take one state; vmap for many.

    Training needs logits, search needs scalars: `predict` gives logits, `scalar` turns the reward's or the
    value's logits into raw units.
    """

    init: Callable[[Array], PyTree]  # (key) -> params
    represent: Callable[[PyTree, PyTree], PyTree]  # (params, observation) -> embedding
    dynamics: Callable[[PyTree, PyTree, Array], PyTree]  # (params, embedding, action) -> where the action leads
    predict: Callable[[PyTree, PyTree], "LatentPrediction"]  # (params, embedding) -> logits
    scalar: Callable[[Array], Array]  # (logits [bins]) -> [] in raw units


class LatentPrediction(NamedTuple):
    """Heads of a latent model at one embedding."""

    policy_logits: Array  # [A]
    reward_logits: Array  # [bins]   of the transition that led here
    value_logits: Array  # [bins]


class Plan(NamedTuple):
    """What a planner found at one root; planners add a leading axis [B] of roots to every field."""

    action: Array  # the chosen action
    actions: Array  # [N, ...] candidates: all of them, or samples
    weights: Array  # [N] the policy target; need not sum to one (a sampled operator's does not)
    qvalues: Array  # [N]
    value: Array  # []   of the root, the model's own before any search
    improved_value: Array  # []   of the root after it: a tree's mean of `value` and the backups, else the sum of p q


Planner = Callable[[PyTree, PyTree, Array], Plan]  # (params, embeddings [B, ...], key) -> Plan, all fields [B, ...]


# --- evaluation from data ---


class Estimate(NamedTuple):
    """An estimated discounted return of one policy, and how far to trust it."""

    value: Array  # []   expected discounted return from the start of an episode
    stderr: Array  # []   of `value`
    per_episode: Array | tuple[()]  # [N] what `value` is the mean of, or () where there is no such thing
    diagnostics: Metrics  # scalars by name: effective_sample_size, largest_weight, low_support (0 or 1), ...


# --- policies and learners ---


class Policy(NamedTuple):
    """Everything downstream of learning sees only this."""

    sample: Callable[[PyTree, PyTree, Array], Array]  # (params, observation, key) -> action
    mode: Callable[[PyTree, PyTree], Array]  # (params, observation) -> action, the greedy one
    log_prob: Callable[[PyTree, PyTree, Array], Array] | None = None  # (params, observation, action) -> []


def keep(state: PyTree, dataset: PyTree, key: Array) -> PyTree:
    """The refresh of a learner that has nothing to refresh."""
    del dataset, key
    return state


class Learner(NamedTuple):
    """A stateless description of learning: all arrays are in `state`, all randomness comes by key.

    `statistics` are the dataset's, shared by all seeds; `given` holds what earlier stages hand on, by their names.
    """

    sample: Callable[[PyTree, Array], PyTree]  # (dataset, key) -> batch; pure, runs inside the scan
    init: Callable[[Array, PyTree, PyTree, PyTree], PyTree]  # (key, example batch, statistics, given) -> state
    step: Callable[[PyTree, PyTree, Array], tuple[PyTree, Metrics]]  # (state, batch, key) -> (state, scalars by name)
    policy: Policy | None  # acts with policy_params(state); None for a stage that only fits a model
    policy_params: Callable[[PyTree], PyTree]  # (state) -> nested dicts of arrays: no optimizer, no buffer
    refresh: Callable[[PyTree, PyTree, Array], PyTree] = (
        keep  # (state, dataset, key) -> state; imagination happens here
    )
    refresh_every: int = 0  # updates between refreshes; 0 never


class Stream(NamedTuple):
    """Data that stay on the disk, in a dataset's place: the host reads the batches of several updates at a time.

    The batch of update `t` depends only on (words, t): the number of updates done is the whole cursor.
    """

    # (words, first, num_updates, size, share) -> leaves [size, S, B / P, ...], of which the first `num_updates` are
    # filled. words [S, W] uint32 say which randomness (or [W]: then no axis S); share (p, P): part p of P of each batch
    read: Callable[[Any, int, int, int, tuple[int, int]], PyTree]
    example: Callable[[], PyTree]  # a whole batch [B, ...] of the host, always the same
    finish: Callable[[PyTree], PyTree]  # what was read [B, ...] -> what `step` takes; runs inside jit
    block_bytes: int  # what the stacked batches of one dispatch may take, where one update does not take more


def nothing(config: Any, spec: EnvironmentSpec) -> dict[str, Learner]:
    """The pretraining of an algorithm that has no earlier stage."""
    del config, spec
    return {}


class Algorithm(NamedTuple):
    """One registry entry."""

    config: type  # frozen dataclass; `num_updates` is its only required field
    make: Callable[..., Learner]  # (config, spec) -> Learner
    pretrain: Callable[..., dict[str, Learner]] = nothing  # (config, spec); their policy_params arrive as given[name]
    presets: Mapping[str, Mapping[str, Any]] = {}  # named settings: published, released, ...
