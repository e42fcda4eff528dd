"""The nouns of the package: what flows from data to model, search, targets, learner and evaluation.

Axes, everywhere: `B` batch, `T` time, `K` unrolled model steps, `A` number of discrete actions or
size of a continuous one, `N` candidate actions, `E` ensemble members, `S` seeds. Every record holds
arrays or pure functions, nothing else.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Key = jax.Array  # a typed random key; consumed by whoever is given it
PyTree = Any
Params = PyTree
Observation = PyTree  # one array, or nested dicts of arrays
Action = Array  # [A] in [-1, 1], or [] integer
ModelState = PyTree
Metrics = Mapping[str, Array]


class UsageError(ValueError):
    """Bad input. The message names what was wrong, where, and what to do next."""


# --- experience ---


class Transition(NamedTuple):
    """One step. Any field may carry leading batch axes."""

    observation: Observation  # [...]
    action: Action  # [A] in [-1, 1], or [] integer
    reward: Array  # []
    discount: Array  # []   0 at a true terminal, else 1; never the discount factor
    next_observation: Observation  # [...]
    extras: PyTree = ()  # for example {"behavior_log_prob": []}


class Trajectory(NamedTuple):
    """A window: T steps, T + 1 observations.

    Past the end of an episode the last observation repeats and `mask` is 0. There `discount` tells
    the two kinds of end apart: 0 after a true terminal (an absorbing state), 1 after a truncation
    (nothing is known).
    """

    observation: Observation  # [T + 1, ...]
    action: Action  # [T, ...]
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
    """Continuous actions: learners see [-1, 1], the bounds `[A]` are in the simulator's units."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    # Whether no source states them: they were taken to be [-1, 1]
    assumed: bool = field(default=False, compare=False)

    @property
    def size(self) -> int:
        """Number of action dimensions."""
        return len(self.minimum)


@dataclass(frozen=True)
class EnvironmentSpec:
    """Shapes and bounds only, no data."""

    observation: PyTree  # of jax.ShapeDtypeStruct, what the policy sees
    action: DiscreteActions | BoundedActions
    gamma: float | None = None  # the benchmark's discount factor, which estimators default to
    horizon: int = 0  # longest episode in steps; 0 when unknown
    frame_stack: int = 1  # records that make one observation, oldest first, on its last axis


def num_actions(spec: EnvironmentSpec, caller: str) -> int:
    """The number of discrete actions.

    Raises:
      UsageError: they are continuous; the message names `caller`.
    """
    if not isinstance(spec.action, DiscreteActions):
        raise UsageError(f"{caller} needs discrete actions, but this dataset's are continuous")
    return spec.action.num_actions


def action_size(spec: EnvironmentSpec, caller: str) -> int:
    """The size of continuous actions.

    Raises:
      UsageError: they are discrete; the message names `caller`.
    """
    if not isinstance(spec.action, BoundedActions):
        raise UsageError(f"{caller} needs continuous actions, but this dataset's are discrete")
    return spec.action.size


# --- models ---


class MemberPredictions(NamedTuple):
    """Means and standard deviations of every member's density, in raw units.

    D = size of the flat observation + 1: its entries in order, then the reward. For models whose
    entries depend on each other (autoregressive ones) these are conditional on the entries of the
    outcome that was sampled.
    """

    mean: Array  # [E, D]
    std: Array  # [E, D]


class Prediction(NamedTuple):
    """What a dynamics model predicts for one step."""

    observation: Observation  # next observation
    reward: Array  # []
    discount: Array  # []   continuation: 0 where the episode ends in a true terminal
    members: MemberPredictions | None = None


class ModelParams(NamedTuple):
    """Parameters of an explicit model; only `network` is learned."""

    network: Params  # {"members": leaves [E, ...], "shared": ...}
    statistics: PyTree  # of the transitions that it was fitted to
    elites: Array  # [k] int32, the members that steps are sampled from


# (observation, action, next_observation) -> [] bool: a known rule for true terminals
Termination = Callable[[Observation, Action, Observation], Array]


class DynamicsModel(NamedTuple):
    """A model of `(observation, action) -> (reward, next observation)`: E >= 1 members, raw units.

    All functions but `loss` take one transition; vmap for many. D as in `MemberPredictions`.
    """

    # (key, statistics of the data) -> params
    init: Callable[[Key, PyTree], ModelParams]
    # (params, batch [E, B, ...], key) -> (loss [], metrics)
    loss: Callable[[ModelParams, Transition, Key], tuple[Array, Metrics]]
    # (params, observation, action, next_observation, reward) -> [E, D] nats, raw units
    log_prob: Callable[[ModelParams, Observation, Action, Observation, Array], Array]
    # (params, observation, key) -> model_state
    reset: Callable[[ModelParams, Observation, Key], ModelState]
    # (params, model_state, action, key) -> (model_state, prediction)
    step: Callable[[ModelParams, ModelState, Action, Key], tuple[ModelState, Prediction]]
    # (params, e) -> params of member e alone, an ensemble of one
    member: Callable[[ModelParams, Any], ModelParams]


class LatentModel(NamedTuple):
    """A model in latent space (the MuZero family). All functions take one state; vmap for many.

    Training needs logits, search needs scalars: `predict` gives logits, `scalar` turns the reward's
    or the value's logits into raw units.
    """

    init: Callable[[Key], Params]
    represent: Callable[[Params, Observation], PyTree]  # -> embedding
    dynamics: Callable[[Params, PyTree, Action], PyTree]  # -> embedding that the action leads to
    predict: Callable[[Params, PyTree], "LatentPrediction"]
    scalar: Callable[[Array], Array]  # (logits [bins]) -> [] in raw units


class LatentPrediction(NamedTuple):
    """Heads of a latent model at one embedding."""

    policy_logits: Array  # [A]
    reward_logits: Array  # [bins]   of the transition that led here
    value_logits: Array  # [bins]


class TrajectoryModel(NamedTuple):
    """A model of whole windows (diffusion, flow matching), which has no honest `step`."""

    init: Callable[[Key, PyTree], Params]  # (key, statistics of the data) -> params
    # (params, windows [B, T, ...], key) -> (loss [], metrics)
    loss: Callable[[Params, Trajectory, Key], tuple[Array, Metrics]]
    # (params, condition of one window, key) -> trajectory
    sample: Callable[[Params, PyTree, Key], Trajectory]


# --- plans ---


class Plan(NamedTuple):
    """What a planner found at one root; planners add a leading axis [B] of roots to every field."""

    action: Action  # the chosen action
    actions: Array  # [N, ...] candidates: all of them, or samples
    weights: Array  # [N] the policy target; need not sum to one (a sampled operator's does not)
    qvalues: Array  # [N]
    value: Array  # []   of the root, the model's own before any search
    improved_value: Array  # []   of the root after it: a tree's mean of `value` and the backups,
    # else the sum of p q


Planner = Callable[[Params, PyTree, Key], Plan]  # (params, embeddings [B, ...], key) -> [B, ...]


# --- evaluation from data ---


class Estimate(NamedTuple):
    """An estimated discounted return of one policy, and how far to trust it."""

    value: Array  # []   expected discounted return from the start of an episode
    stderr: Array  # []   of `value`
    per_episode: Array | None  # [N] what `value` is the mean of; None where there is no such thing
    diagnostics: Metrics  # scalars by name: effective_sample_size, largest_weight, low_support, ...
    errors: Mapping[str, Array] = {}  # [K] by source; see `ope.errors`


# --- policies ---


class Policy(NamedTuple):
    """A policy without memory; all functions take one observation."""

    sample: Callable[[Params, Observation, Key], Action]
    mode: Callable[[Params, Observation], Action]  # the greedy action
    log_prob: Callable[[Params, Observation, Action], Array] | None = None  # -> []


class ActFn(Protocol):
    """Chooses an action and what to remember for the next step."""

    def __call__(
        self, params: Params, carry: PyTree, observation: Observation, key: Key
    ) -> tuple[Action, PyTree]:
        """Returns (action, carry); the carry keeps its structure, shapes and dtypes."""
        ...


class Actor(NamedTuple):
    """A policy with memory: a warm-started plan, a stack of frames, a window that is carried out.

    `policies.as_actor` lifts a `Policy`, whose carry is `()`. The carry is initialized at the first
    observation of each episode.
    """

    init: Callable[[Params, Observation, Key], PyTree]  # (params, first observation, key) -> carry
    act: ActFn
    act_greedily: ActFn | None = None  # without exploration; None: `act`


# --- learners ---


class Context(NamedTuple):
    """The constants of a run: read by `init`, `step` and `refresh`, never changed nor saved."""

    statistics: PyTree = None  # of the dataset, shared by all seeds
    upstream: Mapping[str, PyTree] = {}  # what earlier stages hand on, by their names


class RefreshFn(Protocol):
    """What happens before update t when t is a multiple of `refresh_every`, t = 0 included."""

    def __call__(
        self,
        state: PyTree,
        context: Context,
        dataset: PyTree,
        cache: PyTree,
        update: Array,
        key: Key,
    ) -> tuple[PyTree, PyTree, Metrics]:
        """One refresh.

        Args:
          state: the learner's.
          context: constants.
          dataset: the whole dataset; a stream's cannot be read.
          cache: the imagined data so far; at the first refresh what `init_cache` returned.
          update: [] int32, updates done so far.
          key: consumed.

        Returns:
          (state, cache, metrics): scalars by name, the same ones each time.
        """
        ...


def no_refresh(
    state: PyTree, context: Context, dataset: PyTree, cache: PyTree, update: Array, key: Key
) -> tuple[PyTree, PyTree, Metrics]:
    """The refresh of a learner that has nothing to refresh."""
    del context, dataset, update, key
    return state, cache, {}


def no_cache(example: PyTree) -> PyTree:
    """The cache of a learner that imagines nothing: `()`."""
    del example
    return ()


class Learner(NamedTuple):
    """A stateless description of learning: arrays are arguments, all randomness comes by key.

    What changes in every update is in `state`. Constants are in `context`, imagined data in
    `cache`: both stay beside the state, so that no block copies, freezes or checks them.
    """

    # (dataset, cache, key) -> batch; pure, runs inside the scan. A cache of None asks for real data
    # alone: held-out losses never see imagined rows.
    sample: Callable[[PyTree, PyTree, Key], PyTree]
    # (key, example batch of real data, context) -> state
    init: Callable[[Key, PyTree, Context], PyTree]
    # (state, context, batch, key) -> (state, scalars by name)
    step: Callable[[PyTree, Context, PyTree, Key], tuple[PyTree, Metrics]]
    policy: Policy | Actor | None  # acts with `policy_params`; None: this only fits a model
    # (state, context) -> nested dicts or records of arrays: no optimizer, no cache
    policy_params: Callable[[PyTree, Context], Params]
    # (state, context, held-out batch, key) -> scalars by name; None: nothing is measured there
    validate: Callable[[PyTree, Context, PyTree, Key], Metrics] | None = None
    refresh: RefreshFn = no_refresh
    refresh_every: int = 0  # updates between refreshes; 0: never
    # (example batch) -> an empty cache of fixed shapes
    init_cache: Callable[[PyTree], PyTree] = no_cache


# --- algorithms ---


def whole(dataset: PyTree) -> PyTree:
    """A stage's dataset where nothing is held out of it."""
    return dataset


class Stage(NamedTuple):
    """One fit of an algorithm, self-contained: its learner, its data, its length and its end."""

    learner: Learner
    num_updates: int
    prepare: Callable[[PyTree], PyTree] = whole  # (dataset on the host) -> what this stage sees
    # (what this stage sees) -> its statistics; None: those of the dataset
    statistics: Callable[[PyTree], PyTree] | None = None
    hooks: tuple[Callable[[Any], str | None], ...] = ()  # a reason returned by one ends the stage
    # (state, context) of one seed -> what is handed on by the stage's name; None: `policy_params`
    outputs: Callable[[PyTree, Context], PyTree] | None = None
    # (dataset, outputs with a leading axis [S] of seeds, key) -> the dataset of later stages,
    # shared by all seeds; None: the same dataset
    hand_on_dataset: Callable[[PyTree, PyTree, Key], PyTree] | None = None


def whole_dataset(config: Any, dataset: PyTree) -> PyTree:
    """What the last stage sees of the dataset where nothing is selected."""
    del config
    return dataset


def no_stages(config: Any, spec: EnvironmentSpec) -> dict[str, Stage]:
    """The earlier stages of an algorithm that has none."""
    del config, spec
    return {}


class Case(NamedTuple):
    """A small problem that an algorithm is tested on, beside its registration."""

    problem: Callable[[], Any]  # () -> a record with `dataset`, `spec` and `score(policy, params)`
    config: Mapping[str, Any]  # tiny settings for the checks that only run the code
    score: float  # at least this after `learning`, for every seed
    learning: Mapping[str, Any] = {}  # settings on top of `config` for the check that it learns
    num_updates: int = 1_000  # of that check


class Algorithm(NamedTuple):
    """One registry entry."""

    config: type  # frozen dataclass; `num_updates` is its only required field
    make: Callable[[Any, EnvironmentSpec], Learner]
    pretrain: Callable[[Any, EnvironmentSpec], dict[str, Stage]] = no_stages
    # (config, dataset on the host) -> what the last stage sees, percentile cloning's best episodes
    prepare: Callable[[Any, PyTree], PyTree] = whole_dataset
    presets: Mapping[str, Mapping[str, Any]] = {}  # named settings: published, released, ...
    cases: tuple[Case, ...] = ()
