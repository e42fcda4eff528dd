"""What `speed.py` and `atari.py` measure: programs, their sizes, and their operations.

All numbers are random: a rate does not depend on them, and nothing needs to be copied to a device
but this repository.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed import stopwatch
from offline_mbrl import registry
from offline_mbrl.algorithms import operators
from offline_mbrl.data import memory, normalize, specs
from offline_mbrl.models import gaussian_ensemble, kinds, muzero
from offline_mbrl.networks import precision
from offline_mbrl.networks.residual import ResNetConfig
from offline_mbrl.rollouts import shares, unroll
from offline_mbrl.settings import Precision
from offline_mbrl.training import blocks, flops
from offline_mbrl.types import (
    Action,
    Array,
    Context,
    DiscreteActions,
    EnvironmentSpec,
    Key,
    Learner,
    Observation,
    Params,
    Policy,
    PyTree,
)

GAMMA = 0.99
STATE, ACTION = 17, 6  # cheetah run
CATCH = (10, 5)
NUM_ACTIONS = 6  # of a game
FRAMES = 4  # of an observation


class Sizes(NamedTuple):
    """How much of everything."""

    rows: int  # of data
    layers: tuple[int, ...]  # of actors and critics
    batch_size: int
    model_layers: tuple[int, ...]  # of an ensemble
    starts: int  # of rollouts
    roots: int  # of a lookahead
    product: int  # rows of a square matrix
    seeds: int  # side by side, where they are several
    windows: tuple[int, ...]  # of an update on catch
    atari_windows: tuple[int, ...]
    frames: int  # of the game
    resnet: ResNetConfig
    num_bins: int


LARGE = Sizes(
    rows=200_000,
    layers=(256, 256),
    batch_size=256,
    model_layers=(200, 200, 200, 200),
    starts=50_000,
    roots=8_192,
    product=8_192,
    seeds=32,
    windows=(128, 512),
    atari_windows=(128, 512),
    frames=50_000,
    resnet=ResNetConfig(),
    num_bins=601,
)
SMALL = Sizes(
    rows=200,
    layers=(8,),
    batch_size=4,
    model_layers=(8, 8, 8, 8),
    starts=8,
    roots=4,
    product=64,
    seeds=2,
    windows=(2,),
    atari_windows=(2,),
    frames=60,
    resnet=ResNetConfig(
        channels=4,
        blocks_representation=1,
        blocks_transition=1,
        blocks_prediction=1,
        head_channels=4,
        head_layers=(8,),
    ),
    num_bins=21,
)


class Program(NamedTuple):
    """Something compiled."""

    run: Callable[[int], None]  # does it so many times, and waits
    flops: float  # of one time
    work: float = 1.0  # what is counted, of one time


class Case(NamedTuple):
    """Something to measure."""

    name: str
    precision: Precision
    seeds: int
    unit: str  # of the rate
    make: Callable[[], Program]


# --- learners ---


def update_flops(learner: Learner, dataset: PyTree, context: Context, count: int) -> float:
    """FLOPs of an update of so many seeds; of two branches the larger."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: learner.init(key, learner.sample(dataset, (), key), context))

    def update(state: PyTree) -> PyTree:
        return blocks.update(learner, state, context, dataset, (), key)

    return count * flops.count(update, state)


def learning(
    learner: Learner, dataset: PyTree, context: Context, level: Precision, seeds: int
) -> Program:
    """Updates as `fit` dispatches them.

    Args:
      learner: in float32.
      dataset: on the host.
      context: constants.
      level: the precision.
      seeds: how many side by side.
    """
    rounded = precision.learner_in(learner, level)
    placed = jax.tree.map(jnp.asarray, dataset)
    run = stopwatch.fitted(rounded, placed, context, range(seeds))
    return Program(run=run, flops=update_flops(learner, placed, context, seeds), work=seeds)


def transitions(num_rows: int) -> memory.Dataset:
    """Random ones of the sizes of cheetah run."""
    rng = np.random.default_rng(0)
    columns = {
        "observation": rng.normal(size=(num_rows, STATE)).astype(np.float32),
        "action": rng.uniform(-1, 1, (num_rows, ACTION)).astype(np.float32),
        "reward": rng.uniform(0, 1, num_rows).astype(np.float32),
        "is_terminal": np.zeros(num_rows, bool),
        "is_truncated": np.arange(num_rows) % 100 == 99,
    }
    return memory.Dataset.from_arrays(columns, action_bounds=(-1, 1))


def soft_actor_critic(sizes: Sizes, level: Precision, seeds: int) -> Program:
    """Its updates."""
    dataset = transitions(sizes.rows)
    algorithm = registry.lookup("sac")
    config = algorithm.config(
        actor_layers=sizes.layers, critic_layers=sizes.layers, batch_size=sizes.batch_size
    )
    learner = algorithm.make(config, specs.spec_of(dataset, gamma=GAMMA))
    return learning(learner, dataset, Context(), level, seeds)


def ensemble(sizes: Sizes, level: Precision, seeds: int) -> Program:
    """Updates of the seven members that MOPO trains."""
    dataset = transitions(sizes.rows)
    dataset = dataset._replace(held_out=dataset.starts[:10])
    config = gaussian_ensemble.Config(hidden_layers=sizes.model_layers)
    model = kinds.make(config, specs.spec_of(dataset, gamma=GAMMA))
    context = Context(statistics=normalize.full_statistics(dataset))
    return learning(kinds.learner(config, model), dataset, context, level, seeds)


def records(shape: tuple[int, ...], num_rows: int, num_actions: int, kind: Any) -> memory.Dataset:
    """Random episodes of a hundred steps with discrete actions.

    Args:
      shape: of an observation, or of one of its frames.
      num_rows: steps.
      num_actions: A.
      kind: the observations' dtype.
    """
    rng = np.random.default_rng(0)
    is_last = np.arange(num_rows) % 100 == 99
    columns = {
        "observation": rng.integers(0, 256, (num_rows, *shape), np.uint8).astype(kind),
        "action": rng.integers(0, num_actions, num_rows),
        "reward": rng.uniform(-1, 1, num_rows).astype(np.float32),
        "is_last": is_last,
        "is_terminal": is_last,
    }
    return memory.Dataset.from_arrays(columns)


def rosmo_on_catch(sizes: Sizes, level: Precision, seeds: int, *, windows: int) -> Program:
    """ROSMO's updates with its BSuite networks."""
    dataset = records(CATCH, sizes.rows, 3, np.float32)
    spec = EnvironmentSpec(jax.ShapeDtypeStruct(CATCH, jnp.float32), DiscreteActions(3))
    algorithm = registry.lookup("rosmo")
    learner = algorithm.make(algorithm.config(batch_size=windows), spec)
    return learning(learner, dataset, Context(), level, seeds)


def rosmo_on_atari(sizes: Sizes, level: Precision, seeds: int, *, windows: int) -> Program:
    """ROSMO's updates with its Atari networks, on frames that are stacked in the update."""
    dataset = records((84, 84, 1), sizes.frames, NUM_ACTIONS, np.uint8)
    spec = EnvironmentSpec(
        jax.ShapeDtypeStruct((84, 84, FRAMES), jnp.uint8),
        DiscreteActions(NUM_ACTIONS),
        frame_stack=FRAMES,
    )
    algorithm = registry.lookup("rosmo")
    model = muzero.ModelConfig(num_bins=sizes.num_bins, resnet=sizes.resnet)
    config = algorithm.config(batch_size=windows, unroll_steps=5, td_steps=5, model=model)
    return learning(algorithm.make(config, spec), dataset, Context(), level, seeds)


# --- models in motion, and products ---


def calls(function: Callable, arguments: Sequence[Any], *, work: float) -> Program:
    """Calls of a function, one dispatch each."""
    compiled = jax.jit(function).lower(*arguments).compile()

    def run(count: int) -> None:
        for _ in range(count):
            result = compiled(*arguments)
        jax.block_until_ready(result)

    return Program(run=run, flops=flops.count(function, *arguments), work=work)


def in_precision(function: Callable, level: Precision) -> Callable:
    """The function, its networks in this precision; float32 leaves it as it is."""
    return function if level == "float32" else precision.computing(function, level)


def acting() -> Policy:
    """Two hidden layers of 64."""

    def mode(params: Params, observation: Observation) -> Action:
        first, second = params
        return jnp.tanh(jnp.tanh(observation @ first) @ second)

    def sample(params: Params, observation: Observation, key: Key) -> Action:
        return mode(params, observation) + 0.1 * jax.random.normal(key, (ACTION,))

    return Policy(sample=sample, mode=mode)


def rollouts(sizes: Sizes, level: Precision, seeds: int, *, spread: shares.Spread) -> Program:
    """Five steps of the ensemble from many starts; what is counted is a step."""
    del seeds
    dataset = transitions(max(sizes.rows, sizes.starts + 1))
    config = gaussian_ensemble.Config(hidden_layers=sizes.model_layers)
    model = kinds.make(config, specs.spec_of(dataset, gamma=GAMMA))
    params = jax.jit(model.init)(jax.random.key(0), normalize.full_statistics(dataset))
    returns = unroll.returns(model, acting(), gamma=GAMMA, horizon=5)
    policy_params = (jnp.ones((STATE, 64)) / STATE, jnp.ones((64, ACTION)) / 64)
    starts = jnp.asarray(dataset.observation[: sizes.starts])
    keys = jax.random.split(jax.random.key(1), sizes.starts)
    function = in_precision(spread.apply(model, returns), level)
    return calls(function, (params, policy_params, starts, keys), work=5 * sizes.starts)


def lookahead(sizes: Sizes, level: Precision, seeds: int) -> Program:
    """One-step lookaheads of a model of catch's size; what is counted is a root."""
    del seeds
    spec = EnvironmentSpec(jax.ShapeDtypeStruct(CATCH, jnp.float32), DiscreteActions(3))
    model = muzero.make(muzero.ModelConfig(), spec)
    planner = operators.make(operators.SearchConfig(), model, num_actions=3, gamma=GAMMA)
    function = in_precision(planner, level)
    roots = jax.random.normal(jax.random.key(1), (sizes.roots, 32))
    params = model.init(jax.random.key(0))
    return calls(function, (params, roots, jax.random.key(2)), work=sizes.roots)


def product(sizes: Sizes, level: Precision, seeds: int) -> Program:
    """A product of square matrices, many in one dispatch: the peak that shares are of."""
    del seeds
    matrix = jnp.eye(sizes.product, dtype=level)

    def chain(matrix: Array, count: Array) -> Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ matrix, matrix)

    compiled = jax.jit(chain).lower(matrix, np.int32(1)).compile()

    def run(count: int) -> None:
        jax.block_until_ready(compiled(matrix, np.int32(count)))

    return Program(run=run, flops=2.0 * sizes.product**3)


# --- lists ---

BOTH: tuple[Precision, ...] = ("float32", "bfloat16")


def speed_cases(sizes: Sizes) -> list[Case]:
    """What `speed.py` measures, the products first."""
    many = (1, sizes.seeds)
    programs = [
        ("matrix product", (1,), "products", product),
        ("sac", many, "updates", soft_actor_critic),
        ("ensemble", (1,), "updates", ensemble),
        (
            "rollouts, all members",
            (1,),
            "steps",
            functools.partial(rollouts, spread=shares.jointly),
        ),
        (
            "rollouts, by member",
            (1,),
            "steps",
            functools.partial(rollouts, spread=shares.by_member),
        ),
        ("one-step lookahead", (1,), "roots", lookahead),
        *(
            (f"rosmo on catch, {windows} windows", many, "updates", on_catch)
            for windows in sizes.windows
            for on_catch in [functools.partial(rosmo_on_catch, windows=windows)]
        ),
    ]
    return _cases(programs, sizes)


def atari_cases(sizes: Sizes) -> list[Case]:
    """What `atari.py` measures, the products first."""
    programs = [
        ("matrix product", (1,), "products", product),
        *(
            (f"rosmo on atari, {windows} windows", (1,), "updates", on_atari)
            for windows in sizes.atari_windows
            for on_atari in [functools.partial(rosmo_on_atari, windows=windows)]
        ),
    ]
    return _cases(programs, sizes)


def _cases(programs: Sequence[tuple], sizes: Sizes) -> list[Case]:
    return [
        Case(
            name=name,
            precision=level,
            seeds=seeds,
            unit=unit,
            make=functools.partial(make, sizes, level, seeds),
        )
        for name, counts, unit, make in programs
        for seeds in counts
        for level in BOTH
    ]
