"""Simulators by name: `family/Name?option=value`, for example `bsuite/catch?noise=0.1`.

Whatever the library behind it, `make` gives a `dm_env.Environment` in one convention:

* observations are one array: `uint8` frames, or `float32`; a dictionary is flattened with its keys
  in alphabetical order, each entry in C order;
* discrete actions are 0 .. A - 1; continuous ones are in [-1, 1] and are rescaled to the
  simulator's bounds here;
* a true terminal ends with discount 0, a time limit that is not part of the task with discount 1.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import dm_env
import jax
import numpy as np
from dm_env import specs

from offline_mbrl.environments import wrappers
from offline_mbrl.types import BoundedActions, DiscreteActions, EnvironmentSpec, UsageError

# family -> (module, extra of this package that installs its library). A module has
# `names() -> list[str]` and `load(name, seed, **options) -> (environment, horizon)`.
FAMILIES = {
    "bsuite": ("bsuite", "bsuite"),
    "control": ("control_suite", "control"),
    "gym": ("gymnasium", "gymnasium"),
    "atari": ("atari", "atari"),
    "ogbench": ("ogbench", "ogbench"),
    "maze2d": ("maze2d", ""),  # nothing beyond this package
}
OPTIONS = {
    "bsuite": ("noise",),
    "control": ("noise",),
    "gym": ("noise", "max_steps", "contact_forces"),
    "atari": ("noise", "max_steps", "sticky", "skip"),
    "ogbench": ("noise",),
    "maze2d": ("noise",),
}
SOLVED_AT_TERMINALS = ("ogbench",)  # families whose terminals all say that the task is solved
STARTS_LISTED = ("bsuite",)  # families whose modules have `starts(name) -> tuple[int, ...]`
NEED_DM_CONTROL = ("control", "ogbench")
# Modules with `reseed(environment, seed) -> bool`. Atari's games and OGBench's tasks are gymnasium
# environments; those of bsuite are built again in a millisecond.
RESEEDED = ("control_suite", "gymnasium", "maze2d")
WHOLE = ("max_steps", "skip")
SWITCHES = ("contact_forces",)  # the other options are probabilities


class Simulator(NamedTuple):
    """A parsed name."""

    family: str
    name: str
    # noise: probability of a random action; the others are the family's own
    options: Mapping[str, float]


def make(simulator: str, *, seed: int) -> dm_env.Environment:
    """Builds a simulator.

    Args:
      simulator: `bsuite/catch`, `control/cartpole_swingup`, `gym/Hopper-v4`, `atari/Pong`,
        `ogbench/cube-single-singletask-task1`, `maze2d/umaze-sparse`. Options follow a `?`:
        `noise=0.1` replaces the action with that probability by a uniform one; `max_steps=500`
        (gym, atari) cuts episodes;
        `contact_forces=0` (gym) leaves them out of Ant's observations, as D4RL's data have it;
        `sticky=0` and `skip=2` (atari) are the probability that a frame repeats the previous
        action and the number of frames for which an action is held.
      seed: fixes the simulator's own randomness and the noise.

    Raises:
      UsageError: the name or an option is unknown, or the simulator's library is not installed.
    """
    parsed = parse(simulator)
    environment = wrappers.canonical(_load(parsed, seed)[0])
    if "noise" in parsed.options:
        environment = wrappers.with_action_noise(environment, parsed.options["noise"], seed=seed)
    return environment


def reseed(environment: dm_env.Environment, seed: int) -> bool:
    """Makes a simulator of `make` what it would be if it had been built with this seed.

    It has to be reset before its next step; its episodes are then those of a new one, bit for bit.

    Args:
      environment: built by `make`, whatever was done with it.
      seed: as of `make`.

    Returns:
      False where this simulator cannot be seeded again, and a new one has to be built.
    """
    if isinstance(environment, wrappers.Transformed):
        return environment.reseed(seed, reseed)
    modules = (importlib.import_module(f"offline_mbrl.environments.{name}") for name in RESEEDED)
    return any(module.reseed(environment, seed) for module in modules)


def spec(simulator: str) -> EnvironmentSpec:
    """Shapes, bounds in the simulator's own units, and the longest episode.

    See `make` for the name and errors.
    """
    raw, horizon = _load(parse(simulator), 0)
    observation: Any = wrappers.canonical(raw).observation_spec()
    action: Any = raw.action_spec()
    if isinstance(action, specs.DiscreteArray):
        actions = DiscreteActions(int(action.num_values))
    else:
        actions = BoundedActions(
            minimum=tuple(np.broadcast_to(action.minimum, action.shape).ravel().tolist()),
            maximum=tuple(np.broadcast_to(action.maximum, action.shape).ravel().tolist()),
        )
    raw.close()
    shape = jax.ShapeDtypeStruct(observation.shape, observation.dtype)
    return EnvironmentSpec(observation=shape, action=actions, horizon=horizon)


def has_success(simulator: str) -> bool:
    """Whether a terminal of this simulator says that its task is solved, and nothing else does."""
    return simulator.partition("/")[0] in SOLVED_AT_TERMINALS


def starts(simulator: str) -> tuple[int, ...]:
    """Seeds of `make` whose first episodes begin at each start of a simulator once.

    None where starts are many or not equally likely, or where anything after them is random, so
    that a policy that is not random has as many returns as there are starts.
    """
    family, _, name = simulator.partition("/")
    if family not in STARTS_LISTED:
        return ()
    return importlib.import_module(f"offline_mbrl.environments.{family}").starts(name)


def parse(simulator: str) -> Simulator:
    """Splits a name into family, name and checked options.

    Raises:
      UsageError: the family, an option, or an option's value is not understood.
    """
    path, mark, query = simulator.partition("?")
    family, _, name = path.partition("/")
    if family not in FAMILIES or not name:
        close = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"; did you mean {close[0]}/...?" if close and family not in FAMILIES else ""
        raise UsageError(
            f"unknown simulator {simulator!r}: expected FAMILY/NAME, FAMILY one of "
            f"{list(FAMILIES)}{hint}"
        )
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if mark else []
    except ValueError:
        raise UsageError(
            f"simulator {simulator!r}: options are written ?name=value&name=value"
        ) from None
    options = {key: _option(simulator, family, key, text) for key, text in pairs}
    return Simulator(family=family, name=name, options=options)


def _option(simulator: str, family: str, key: str, text: str) -> float:
    if key not in OPTIONS[family]:
        options = ", ".join(OPTIONS[family])
        raise UsageError(
            f"simulator {simulator!r}: unknown option {key!r}; {family} has: {options}"
        )
    try:
        value = int(text) if key in WHOLE else float(text)
    except ValueError:
        value = -1
    valid = value >= 1 if key in WHOLE else 0 <= value <= 1
    valid = valid and (key not in SWITCHES or value in (0, 1))
    if not valid:
        kind = "a positive whole number" if key in WHOLE else "a probability from 0 to 1"
        kind = "0 or 1" if key in SWITCHES else kind
        raise UsageError(f"simulator {simulator!r}: option {key} must be {kind}, got {text!r}")
    return value


def _load(parsed: Simulator, seed: int) -> tuple[dm_env.Environment, int]:
    """The simulator in its own units, and its longest episode in agent steps (0 when unknown)."""
    module, extra = FAMILIES[parsed.family]
    family = importlib.import_module(f"offline_mbrl.environments.{module}")
    try:
        _check_name(parsed, family.names)
        own = {option: value for option, value in parsed.options.items() if option != "noise"}
        return family.load(parsed.name, seed, **own)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'offline_mbrl[{extra}]'"
        if parsed.family in NEED_DM_CONTROL:
            remedy += " on Python 3.12 or older: dm_control's labmaze has no wheel for later ones"
        raise UsageError(
            f"simulator {parsed.family}/{parsed.name} needs a package that is not installed "
            f"({error.name or error}): {remedy}"
        ) from error


def _check_name(parsed: Simulator, names: Callable[[], list[str]]) -> None:
    all_names = names()
    if parsed.name in all_names:
        return
    lowered = {name.lower(): name for name in all_names}
    close = [lowered[name] for name in difflib.get_close_matches(parsed.name.lower(), lowered, n=3)]
    hint = ", ".join(f"{parsed.family}/{name}" for name in close or sorted(all_names)[:3])
    raise UsageError(
        f"unknown simulator '{parsed.family}/{parsed.name}'; the closest known: {hint}"
    )
